# ruff: noqa: RUF001
"""Writes clip_bpe.json with the reference implementations.

pip install open_clip_torch==3.3.0 torch==2.13.0 && pip download --no-deps clip-anytorch
python tests/golden/tokenizers/make_clip_bpe.py simple_tokenizer.py   # of clip-anytorch
"""

import importlib.util
import json
import sys
from pathlib import Path

import torch

# PyPI's torchvision does not load beside a CPU build of torch unless these names exist.
library = torch.library.Library("torchvision", "DEF")
for operator in ("nms", "qnms"):
    library.define(operator + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

from open_clip.tokenizer import SimpleTokenizer  # noqa: E402

TEXTS = [
    # plain captions
    "a photo of a cat",
    "A photo of a dog.",
    "two dogs, one cat; and a bird!",
    "itap of a golden retriever",
    "a rendition of the toy.",
    "an origami crane on a wooden table",
    "close-up photo of the tick.",
    "graffiti of a zebra on a wall",
    "grinning face with big eyes",
    "couple with heart person person medium-light skin tone medium-dark skin tone",
    "flag: Côte d’Ivoire",
    "BUY NOW!!! 50% OFF",
    "HELLO WORLD",
    "MiXeD CaSe WoRdS",
    "the quick brown fox jumps over the lazy dog",
    "supercalifragilisticexpialidocious",
    "antidisestablishmentarianism floccinaucinihilipilification",
    "pneumonoultramicroscopicsilicovolcanoconiosis",
    # contractions and apostrophes
    "it's a dog's life, isn't it?",
    "they're we've I'm you'll he'd don't",
    "IT'S DON'T THEY'RE",
    "'s 't 're 've 'm 'll 'd",
    "rock 'n' roll",
    "''''",
    "o'clock o'neill 'tis",
    # curly quotes, dashes, ligatures
    "“quoted” and ‘single’",
    "it’s a dog’s life",
    "en–dash em—dash ellipsis…",
    "ﬁsh and ﬂower, oﬃce",
    "„German“ «French» ‹x›",
    "prime′ double″",
    # white space
    "",
    " ",
    "   leading and trailing   ",
    "tabs\tand\nnew\r\nlines",
    "form\ffeed vertical\vtab",
    "no\u00a0break space",
    "thin\u2009space em\u2003space",
    "ideographic\u3000space",
    "zero\u200bwidth\u200cjoin\u200der",
    "line\u2028separator paragraph\u2029separator",
    "next\u0085line",
    "a\x1cb\x1dc\x1ed\x1fe",
    # control characters
    "nul\x00byte",
    "bell\x07back\x08space",
    "escape\x1b[31mred\x1b[0m",
    "delete\x7fcharacter",
    "c1\x80\x9f controls",
    "\ufeffbyte order mark",
    "object\ufffcreplacement\ufffd",
    "soft\u00adhyphen",
    "left\u200eto\u200fright\u202amarks\u202c",
    # HTML
    "cats &amp; dogs",
    "cats &amp;amp; dogs",
    "cats &amp;amp;amp; dogs",
    "&lt;b&gt;bold&lt;/b&gt;",
    "<b>bold</b> &amp; brave",
    "caf&eacute; &EACUTE; &Eacute;",
    "&#233; &#xe9; &#0; &#128512;",
    "&nbsp;&nbsp;spaces&nbsp;",
    "AT&T R&D &notanentity; &amp",
    "&quot;quoted&quot; &apos;x&apos; &hellip;",
    "<img src='x.jpg' alt=\"y\">",
    "https://example.com/a?b=c&d=e#f",
    "me@example.com #hashtag @user",
    # accents
    "café",
    "cafe\u0301",
    "CAFÉ À LA CRÈME",
    "naïve façade über Straße",
    "STRASSE STRAẞE",
    "Ångström smörgåsbord",
    "São Paulo, İstanbul, Iğdır ıI",
    "Łódź żółw gęś",
    "crème brûlée à la carte",
    "Zażółć gęślą jaźń",
    "Dvořák čeština",
    "Đà Nẵng, Việt Nam",
    "ñandú español ¿qué? ¡hola!",
    "Þórr Æsir øl ð",
    "ſtreet long s, 'ſ",
    "K kelvin sign, Å angstrom sign",
    "ǅ titlecase",
    "a\u0301\u0302\u0303 stacked marks",
    # mojibake
    "cafÃ© crÃ¨me",
    "itâ€™s broken",
    "âœ” No problems",
    "schÃ¶n Ã¼ber",
    "l’humanitÃ©",
    "Ð¿Ñ€Ð¸Ð²ÐµÑ‚",
    # emoji
    "😀",
    "😀 grinning 😀😀",
    "I ❤️ NY",
    "👍🏽 thumbs",
    "👩‍👩‍👧‍👦 family",
    "🇪🇺🇫🇷 flags",
    "🏴󠁧󠁢󠁥󠁮󠁧󠁿",
    "1️⃣ keycap",
    "☃ ★ ✓ ✗ →",
    "🫠🫡🫢",
    "© ® ™",
    "㊙️㊗️",
    # scripts
    "一只猫",
    "猫の写真",
    "カタカナ ひらがな",
    "ﾊﾝｶｸ カナ",
    "ＦＵＬＬＷＩＤＴＨ　ｔｅｘｔ１２３",
    "고양이 사진",
    "кошка на столе",
    "ПРИВЕТ МИР",
    "γάτα στο τραπέζι ΣΊΣΥΦΟΣ",
    "قطة على الطاولة",
    "חתול על השולחן",
    "बिल्ली की तस्वीर",
    "แมวบนโต๊ะ",
    "ქართული ენა",
    "Հայերեն",
    "ᏣᎳᎩ",
    "ⰀⰁⰂ",
    "𝒽𝑒𝓁𝓁𝑜 𝔴𝔬𝔯𝔩𝔡",
    "𐍈𐌰 gothic",
    "mixed 猫 and кот and cat",
    "“中文引号”，标点。！？",
    # numbers
    "1",
    "1234567890",
    "3.14159 2,000,000",
    "year 1984 and 2024",
    "10x20cm 4k 1080p",
    "½ ¾ ² ³ ₂",
    "Ⅳ ⅷ ①②③",
    "٠١٢٣ ०१२",
    "1st 2nd 3rd 4th",
    "-5°C 98.6°F",
    "$9.99 €5 £3 ¥100 ₹50",
    "+1 (555) 123-4567",
    # punctuation
    "!",
    "!!!",
    "?!?!?!",
    "...",
    "a.b.c",
    "_under_score_ __init__",
    "back\\slash / slash | pipe",
    "{curly} [square] (round) <angle>",
    "~`!@#$%^&*()-_=+",
    "-----",
    "=====>",
    ":-) ;-( :D",
    "a--b---c",
    "no.space,after;punctuation:at!all?",
    "C++ C# .NET node.js",
    "e.g. i.e. etc.",
    # spelled specials of neither implementation, and near misses
    "<|start|>",
    "</w>",
    "word</w> next</w>",
    "<end>",
    "endoftext",
    "< endoftext >",
    "[CLS] [SEP] [PAD] <s> </s> <unk>",
    # long
    "word " * 200,
    "a" * 500,
    "ab" * 400,
    "é" * 300,
    "😀" * 100,
    "1" * 100,
    "the cat sat on the mat and " * 20,
    "x" * 76,
    "a photo of " + "very " * 72 + "long",
    "lorem ipsum dolor sit amet, consectetur adipiscing elit, sed do eiusmod tempor " * 3,
    "猫" * 100,
    "!" * 200,
    "supercalifragilisticexpialidocious" * 10,
    # what captions of the web look like
    "Stock photo - Young woman w/ laptop @ café (Paris, 2019)",
    "IMG_20190704_123456.jpg",
    "DSC00042 copy (2).JPEG",
    "Nike Air Max 90 'Infrared' 2020 | CT1685-100",
    "1969 Chevrolet Camaro SS 396/375 HP",
    "Vintage 70's T-Shirt, Size XL \u2013 Men's",
    "Free shipping!!! ★★★★★ \u00a0 Best-Seller",
    "How to: make DIY crafts \u00bb step-by-step",
    'Mr. & Mrs. Smith\'s "Big" Day',
    "H&M x Balmain",
    "50° F / 10° C",
    "<p>Hello,&nbsp;<br/>world</p>",
    "%20 encoded%20text %C3%A9",
    "\\u00e9 \\n escaped",
    "q: what is it? a: it is a cat.",
    "aaa bbb ccc ddd eee fff ggg",
    "zzyzx xyzzy qwerty",
    "iPhone15ProMax128GB",
    "snake_case camelCase kebab-case",
    "e\u0301\u0301\u0301",
    "\u0301leading mark",
    "İ i̇ I ı",
    "ŉ ǰ ΐ ﬃ",
    "mid·dot bullet• degree°",
    "‰ ‱ № ℃ ℉",
    "∀x∈ℝ: x² ≥ 0",
    "H₂O CO₂ E=mc²",
    "𝟙𝟚𝟛 𝐁𝐨𝐥𝐝",
    "\U0001f9d1\U0001f3fe\u200d\u2764\ufe0f\u200d\U0001f9d1\U0001f3fc",
]
SPELLED = ["<|startoftext|>a cat<|endoftext|> more", "<|ENDOFTEXT|>", "x<|endoftext|>y"]
SPELLED_OPEN_CLIP = ["<start_of_text>a cat<end_of_text> more", "<END_OF_TEXT>", "x<end_of_text>y"]


def main(path: str) -> None:
    spec = importlib.util.spec_from_file_location("simple_tokenizer", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    openai, open_clip = module.SimpleTokenizer(), SimpleTokenizer()
    assert len(TEXTS) == len(set(TEXTS))
    for text in TEXTS:
        assert openai.encode(text) == open_clip.encode(text), text
    golden = {
        "ids": {text: open_clip.encode(text) for text in TEXTS},
        "openai_specials": {text: openai.encode(text) for text in SPELLED},
        "open_clip_specials": {text: open_clip.encode(text) for text in SPELLED_OPEN_CLIP},
        "rows_of_77": {
            text: open_clip([text], context_length=77)[0].tolist()
            for text in TEXTS
            if not 0 < len(open_clip.encode(text)) < 70
        },
    }
    text = json.dumps(golden, ensure_ascii=True, indent=None, separators=(",", ":"))
    Path(__file__).with_name("clip_bpe.json").write_text(text.replace('],"', '],\n"') + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
