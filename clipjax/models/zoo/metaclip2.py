"""MetaCLIP 2 (arXiv:2507.22062): CLIP's towers over XLM-V's vocabulary, named as OpenCLIP does.

The vocabulary has 901,629 ids and is not shipped: `config.model.tokenizer.model` is the path of
the tokenizer.json of XLM-V (facebook/xlm-v-base). Its end of text, `</s>`, has the id 2, so that a
text is pooled at the first 2 and not at its largest id.
"""

from typing import Any

from clipjax.models.zoo import clip_vit

_END_ID, _PAD_ID, _VOCAB_SIZE = 2, 1, 901_629

# name: (row with the same sizes and activation, how images are resized)
_BASES = {
    "ViT-H-14-worldwide": ("ViT-H-14", "shortest"),
    "ViT-H-14-worldwide-quickgelu": ("ViT-H-14-quickgelu", "shortest"),
    "ViT-H-14-worldwide-378": ("ViT-H-14-378", "squash"),
    "ViT-bigG-14-worldwide": ("ViT-bigG-14", "shortest"),
    "ViT-bigG-14-worldwide-378": ("ViT-bigG-14", "squash"),
}


def _row(name: str) -> dict[str, Any]:
    base, resize = _BASES[name]
    row = clip_vit.ROWS[base]
    return {
        **row,
        "name": name,
        "image_size": 378 if name.endswith("-378") else 224,
        "text": {**row["text"], "vocab_size": _VOCAB_SIZE, "eot_id": _END_ID},
        "tokenizer": {
            "name": "tokenizer_json",
            "pad_id": _PAD_ID,
            "cleaning": ("fix_text", "collapse_whitespace"),
        },
        "preprocess": {**row["preprocess"], "resize": resize},
        "source": "arXiv:2507.22062, facebookresearch/MetaCLIP",
    }


ROWS: dict[str, dict[str, Any]] = {name: _row(name) for name in _BASES}
