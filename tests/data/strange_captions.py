"""Captions as the web has them, and worse."""

WORDS = [
    "a",
    "photo",
    "of",
    "Katze",
    "caf\u00e9",
    "cafe\u0301",
    "\u732b",
    "\u0645\u0631\u062d\u0628\u0627",
]
WORDS += ["&amp;amp;", "&lt;b&gt;", "schÃ¶n", "\u201cquoted\u201d", "it's", "1234567890", "a_b-c"]
WORDS += ["<|startoftext|>", "<|endoftext|>", "</s>", "<pad>", "[MASK]", "{}", "%s", "\\x00", "\0"]
EMOJI = ["\U0001f600", "\U0001f469\u200d\U0001f680", "\u2764\ufe0f", "\U0001f1e9\U0001f1ea"]
RANGES = [(0x20, 0x7F), (0xA0, 0x250), (0x300, 0x370), (0x590, 0x700), (0x900, 0xE80)]
RANGES += [(0x2000, 0x2070), (0x3040, 0x3100), (0x4E00, 0x9FFF), (0xAC00, 0xD7A4), (0xD800, 0xE000)]
RANGES += [(0xE000, 0xE100), (0xFE00, 0x10000), (0x1F300, 0x1FAFF), (0xE0000, 0xE0080), (0, 0x20)]
HUGE = 1 << 20


def random_text(rng, length):
    low, high = RANGES[int(rng.integers(len(RANGES)))]
    return "".join(map(chr, rng.integers(low, high, length).tolist()))


def huge_captions():
    """A megabyte each."""
    return [
        "a" * HUGE,
        "word " * (HUGE // 5),
        " " * HUGE,
        " " * HUGE + "end",
        "\u0301" * (HUGE // 2),
        "\u732b" * (HUGE // 3),
        "&amp;" * (HUGE // 5),
        "schÃ¶n " * (HUGE // 8),
        "'" * HUGE,
        b"\xff" * HUGE,
        "\n" * HUGE,
        "ab\0" * (HUGE // 3),
        "\U0001f600" * (HUGE // 4),
    ]


def strange_caption(rng):
    """One caption, text or bytes."""
    kind = int(rng.integers(10))
    if kind == 0:
        return random_text(rng, int(rng.integers(0, 200)))
    if kind == 1:
        return "".join(random_text(rng, int(rng.integers(1, 8))) for _ in range(20))
    if kind == 2:
        return rng.bytes(int(rng.integers(0, 60)))
    if kind == 3:
        text = " ".join(rng.choice(WORDS, 12)).encode("utf-8")
        place = int(rng.integers(len(text)))
        return text[:place] + rng.bytes(int(rng.integers(0, 3))) + text[place:]
    if kind == 4:
        return "".join(rng.choice(EMOJI, int(rng.integers(1, 30))))
    if kind == 5:
        return "e" + "\u0301" * int(rng.integers(1, 500))
    if kind == 6:
        return str(rng.choice(WORDS)) * int(rng.integers(1, 2000))
    if kind == 7:
        return "".join(rng.choice(list(" \t\n\r\u00a0\u200b\u3000\x1f\0"), int(rng.integers(9))))
    words = [str(word) for word in rng.choice(WORDS + EMOJI, int(rng.integers(1, 120)))]
    return " ".join(words) if kind == 8 else "\u202e" + "".join(words)
