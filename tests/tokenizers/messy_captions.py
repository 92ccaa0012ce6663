# ruff: noqa: E501, RUF001, SIM905
"""20,000 captions as the web has them, the same ones every time: `captions()`.

Only raw bits of Philox decide: the methods of NumPy's Generator may change with its version, and
the golden hashes of the ids have to hold on any machine.
"""

import hashlib

import numpy as np

BLOCK = 1000

WORDS = """a the of in on with and photo picture close-up dog cat zebra man's woman's it's don't
they're I've we'll o'clock bicycle skateboard supercalifragilisticexpialidocious iPhone15ProMax
snake_case camelCase C++ C# .NET node.js e.g. i.e. etc. IMG_20190704_123456.jpg DSC00042.JPEG 1969
70's XL 50% 3.14159 2,000,000 1080p 4k $9.99 €5 £3 ¥100 -5°C 98.6°F +1(555)123-4567 1st 2nd 3rd
T-SHIRT SALE!!! free-shipping Best-Seller H&M AT&T R&D Vintage Chevrolet Camaro SS 396/375 HP""".split()
ACCENTS = """café cafe\u0301 CAFÉ naïve façade Straße STRASSE Ångström smörgåsbord São İstanbul Iğdır
ıI Łódź żółw gęś crème brûlée Dvořák čeština Đà Nẵng Việt ñandú ¿qué? ¡hola! Þórr Æsir ſtreet K Å
ǅ a\u0301\u0302\u0303 ŉ ǰ ΐ ﬁsh ﬂower oﬃce ﬃ ½ ² ₂ Ⅳ ①②③ e\u0301\u0301 \u0301mark ΣΊΣΥΦΟΣ""".split()
CJK = """一只猫 猫の写真 カタカナ ひらがな ﾊﾝｶｸ ＦＵＬＬ１２３ 고양이 사진 “中文引号”，标点。！？ 美丽的风景 東京タワー
漢字仮名交じり文 한국어 全角　空白 ｱｲｳ ー々〆 𠮷野家 㐀㐁""".split()
SCRIPTS = """кошка ПРИВЕТ Ёлка й и\u0306 γάτα τραπέζι قطة الطاولة חתול שולחן बिल्ली तस्वीर แมวบนโต๊ะ
ქართული Հայերեն ᏣᎳᎩ ⰀⰁⰂ 𝒽𝑒𝓁𝓁𝑜 𝐁𝐨𝐥𝐝 𐍈𐌰 ٠١٢٣ ०१२ اَلْعَرَبِيَّةُ ไทย ខ្មែរ ਪੰਜਾਬੀ தமிழ்""".split()
EMOJI = """😀 ❤️ 👍🏽 👩‍👩‍👧‍👦 🇪🇺🇫🇷 🏴󠁧󠁢󠁥󠁮󠁧󠁿 1️⃣ ☃ ★ ✓ → © ® ™ ㊙️ 🎉🎉🎉 🧑🏾‍❤️‍🧑🏼 ♂️ ⭐️ 🐕‍🦺 ★★★★★""".split()
ENTITIES = """&amp; &amp;amp; &lt;b&gt; </b> &eacute; &Eacute; &#233; &#xe9; &#0; &#128512; &nbsp; &quot;
&hellip; &notanentity; &amp &mdash; <p>Hello,&nbsp;<br/>world</p> %20 \\u00e9 \\n <img src='x.jpg'>
https://example.com/a?b=c&d=e#f me@example.com #hashtag @user &copy; &shy; &zwj; &#x200b;""".split()
MOJIBAKE = """cafÃ© crÃ¨me itâ€™s âœ” schÃ¶n Ã¼ber l’humanitÃ© Ð¿Ñ€Ð¸Ð²ÐµÑ‚ â€œquotedâ€\x9d
ï¼Ÿ Â© Ã± â‚¬ ’ ‘single’ “double” „German“ «French» – — … ′ ″""".split()
CONTROLS = [
    *(chr(number) for number in range(32)),
    "\x7f", "\x80", "\x85", "\x9f", "\xa0", "\xad", "\u061c", "\u180e", "\u2003", "\u2009",
    "\u200b", "\u200c", "\u200d", "\u200e", "\u200f", "\u2028", "\u2029", "\u202a", "\u202c",
    "\u2060", "\u3000", "\ufeff", "\ufffc", "\ufffd", "\x1b[31m", "\r\n", "  ", "\t\t",
]  # fmt: skip
PUNCTUATION = (
    list("!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~") + "... !!! ?!? -- ==> :-) '' _x_ ~~".split()
)
# Kinds of caption and how many of each hundred; what is left of the hundred is mixed.
KINDS = {
    "plain": (20, (WORDS,)),
    "accents": (10, (WORDS, ACCENTS)),
    "cjk": (10, (WORDS, CJK, CJK)),
    "scripts": (10, (SCRIPTS, SCRIPTS, WORDS)),
    "emoji": (10, (WORDS, EMOJI)),
    "entities": (10, (WORDS, ENTITIES)),
    "mojibake": (8, (WORDS, MOJIBAKE)),
    "controls": (8, (WORDS, CONTROLS)),
    "punctuation": (6, (WORDS, PUNCTUATION, PUNCTUATION)),
}
MIXED = (WORDS, ACCENTS, CJK, SCRIPTS, EMOJI, ENTITIES, MOJIBAKE, CONTROLS, PUNCTUATION)
SEPARATORS = (" ", " ", " ", " ", "", "  ", "\n", "\u00a0", ", ", "-", "_")
# Code points of these blocks are drawn at random: Latin, Cyrillic, Arabic, Devanagari, symbols,
# kana, ideographs, Hangul, presentation forms. All are of Unicode 9 or older, so that Python's
# tables and those of the libraries agree on what they are.
BLOCKS = ((0x20, 0x24F), (0x410, 0x44F), (0x620, 0x64A), (0x904, 0x939), (0x2010, 0x2027),
          (0x2190, 0x23CF), (0x3041, 0x3096), (0x4E00, 0x9FA5), (0xAC00, 0xD7A3),
          (0xFF01, 0xFF9D), (0x1F600, 0x1F64F))  # fmt: skip


def captions(number: int = 20_000, seed: int = 4) -> list[str]:
    """Makes the captions; the first n of them are `captions(n)`."""
    philox = np.random.Philox(key=seed)
    bounds, kinds = 0, []
    for share, pools in KINDS.values():
        bounds += share
        kinds.append((bounds, pools))
    return [_caption(_Draw(philox), kinds) for _ in range(number)]


def _caption(draw: "_Draw", kinds) -> str:
    kind = draw(100)
    pools = next((pools for bound, pools in kinds if kind < bound), MIXED)
    if draw(50) == 0:
        return _random_characters(draw)
    if draw(100) == 0:
        return _long(draw, pools)
    text = ""
    for _ in range(draw(24)):
        text += _word(draw, pools) + SEPARATORS[draw(len(SEPARATORS))]
    return text.upper() if draw(20) == 0 else text


class _Draw:
    """Integers below a bound, from one block of bits a caption."""

    def __init__(self, philox: np.random.Philox):
        self._bits = iter(philox.random_raw(600).tolist())

    def __call__(self, bound: int) -> int:
        return next(self._bits) % bound


def _word(draw: _Draw, pools) -> str:
    pool = pools[draw(len(pools))]
    return pool[draw(len(pool))]


def _random_characters(draw: _Draw) -> str:
    text = ""
    for _ in range(draw(60)):
        first, last = BLOCKS[draw(len(BLOCKS))]
        text += chr(first + draw(last - first + 1))
    return text


def _long(draw: _Draw, pools) -> str:
    word = _word(draw, pools)
    if draw(2):
        return word * (1 + draw(150))
    return " ".join(_word(draw, pools) for _ in range(100 + draw(100)))


def hashes(rows: np.ndarray) -> list[str]:
    """SHA-256 of ids `[captions, length]`, one of every thousand captions, to find a fault."""
    rows = np.ascontiguousarray(rows, "<i4")
    blocks = (rows[start : start + BLOCK] for start in range(0, len(rows), BLOCK))
    return [hashlib.sha256(block.tobytes()).hexdigest() for block in blocks]
