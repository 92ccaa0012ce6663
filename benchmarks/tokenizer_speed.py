"""CLIP's BPE beside open_clip's SimpleTokenizer: captions a second on one core.

    pip install -e '.[demo,interop]' && python benchmarks/tokenizer_speed.py

Both give the same rows of ids, which is checked. A cold tokenizer has been made just before and has
met no word; a warm one has encoded the same captions once. Seconds are those of the processor, the
least of REPEATS rounds in which the two take turns.
"""

import os
import sys
import time
from pathlib import Path

import emoji
import numpy as np
import torch

sys.path.append(str(Path(__file__).parents[1] / "tests" / "golden" / "models"))
import torchvision_operators  # noqa: F401  # isort: skip  before what imports torchvision

if __name__ == "__main__" and not __package__:  # a file: the checkout in place of its folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from open_clip.tokenizer import SimpleTokenizer

from benchmarks.common import setting_lines
from clipjax.data.classes.named_lists import load_class_names
from clipjax.encoding.templates import load_templates
from clipjax.tokenizers import ClipBPE

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "tokenizers"))
from messy_captions import captions as messy_captions

NUMBER, REPEATS = 20_000, 3
LANGUAGES = ("en", "es", "de", "fr", "ja", "ko", "pt", "it", "zh", "id", "ru", "tr", "ar")


def main() -> None:
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    torch.set_num_threads(1)
    print("\n".join(setting_lines("open_clip_torch", "ftfy", "regex", "torch", "numpy")))
    print("\n| captions | word cache | clipjax | open_clip | ratio |\n|---|---|---|---|---|")
    for name, texts in sets().items():
        for state, ours, theirs in measure(texts):
            ratio = f"{theirs / ours:.1f}x"
            speeds = (f"{len(texts) / seconds:,.0f}/s" for seconds in (ours, theirs))
            print(f"| {name} | {state} | {' | '.join(speeds)} | {ratio} |")


def sets() -> dict[str, list[str]]:
    """Sets of NUMBER captions, in an order without pattern."""
    for language in LANGUAGES:
        emoji.config.load_language(language)
    prompts = [
        template.replace("{}", name)
        for name in load_class_names("imagenet")
        for template in load_templates("openai_80")
    ]
    names = [
        entry[language].strip(":").replace("_", " ")
        for entry in emoji.EMOJI_DATA.values()
        for language in LANGUAGES
        if language in entry
    ]
    return {
        "ImageNet's class names in 80 templates": draw(prompts),
        f"names of emoji in {len(LANGUAGES)} languages": draw(names),
        "the messy captions of the tests": messy_captions(NUMBER),
    }


def draw(texts: list[str]) -> list[str]:
    order = np.random.Generator(np.random.Philox(key=0)).permutation(len(texts))
    return [texts[i] for i in order[:NUMBER].tolist()]


def measure(texts: list[str]) -> list[tuple[str, float, float]]:
    """Seconds of ours and of open_clip's, cold and warm."""
    seconds: dict[tuple[str, type], list[float]] = {}
    for _ in range(REPEATS):
        rows = {}
        for kind in (ClipBPE, SimpleTokenizer):
            tokenizer = kind()
            for state in ("cold", "warm"):
                start = time.process_time()
                rows[kind] = np.asarray(tokenizer(texts))
                seconds.setdefault((state, kind), []).append(time.process_time() - start)
        np.testing.assert_array_equal(rows[ClipBPE], rows[SimpleTokenizer])
    return [
        (state, min(seconds[state, ClipBPE]), min(seconds[state, SimpleTokenizer]))
        for state in ("cold", "warm")
    ]


if __name__ == "__main__":
    main()
