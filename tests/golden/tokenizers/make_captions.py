"""Writes captions.json: hashes of the ids that the reference tokenizers give for messy captions.

pip install open_clip_torch==3.3.0 transformers==4.57.6 torch==2.13.0 sentencepiece==0.2.3
python make_models.py && PYTHONPATH=. python make_captions.py   # from the root of the repository
"""

import json
import sys
from pathlib import Path

import sentencepiece

from clipjax.models.zoo import MODELS
from clipjax.tokenizers import make_tokenizer

sys.path.insert(0, str(Path(__file__).parents[2] / "tokenizers"))
import reference_tokenizers as references
from messy_captions import captions, hashes

HERE = Path(__file__).parent


def siglip_ties(texts: list[str]) -> dict[int, list[int]]:
    """Rows where transformers takes another of two segmentations of equal score.

    It encodes `<unk>` in front of every caption and takes that off again, which changes the
    rounding of the sums. The test proves of each row that it is such a one.
    """
    model = references.unpacked("c4.model.gz")
    processor = sentencepiece.SentencePieceProcessor(model_file=model)
    spec = dict(MODELS["siglip-b-16-224"]["tokenizer"], model=model)
    ours = make_tokenizer(spec, context_length=64)(texts)
    ties = {}
    for number, (row, theirs) in enumerate(
        zip(ours, references.encode("siglip", texts), strict=True)
    ):
        if (row != theirs).any() and processor.decode(row.tolist()) == processor.decode(
            theirs.tolist()
        ):
            ties[number] = theirs.tolist()
    return ties


def main() -> None:
    texts = captions()
    golden = {"versions": references.versions(), "hashes": {}, "ties": {}}
    for name in references.CASES:
        golden["hashes"][name] = hashes(references.encode(name, texts))
    golden["ties"] = siglip_ties(texts)
    text = json.dumps(golden, indent=1)
    (HERE / "captions.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
