"""Text as it comes from files: UTF-8, or a word on what it is instead."""

import codecs

# Marks of 4 bytes first: one of UTF-32 begins as one of UTF-16 does.
_MARKS = (
    (codecs.BOM_UTF32_LE, "UTF-32"),
    (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16"),
    (codecs.BOM_UTF16_BE, "UTF-16"),
)
_LOOKED_AT = 1 << 12


def decode_text(content: bytes, where: object) -> str:
    """Decodes a file of text, with a mark of UTF-8 or without it."""
    name = str(where).rpartition("/")[2]
    is_table = name.lower().endswith((".csv", ".tsv"))
    hint = "; Excel writes it as `CSV UTF-8`" if is_table else ""
    if (other := _other_encoding(content)) is not None:
        raise ValueError(
            f"{where} is {other}, expected UTF-8: `iconv -f {other.lower()} -t utf-8 {name} > "
            f"utf8-{name}` brings it there{hint}"
        )
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"{where}, line {line} {not_utf8(error)}; if it is Latin-1, `iconv -f latin1 -t "
            f"utf-8 {name} > utf8-{name}` brings it to UTF-8"
        ) from error


def not_utf8(error: UnicodeDecodeError) -> str:
    """Says of what did not decode that it is not UTF-8, and what it is, if that can be told."""
    other = _other_encoding(error.object)
    return f"is not UTF-8: {error}" + (f"; it is {other}" if other else "")


def _other_encoding(content: bytes) -> str | None:
    """Names an encoding of 2 or 4 bytes a character: by its mark, or by the zeros of its ASCII."""
    for mark, name in _MARKS:
        if content.startswith(mark):
            return name
    start = content[:_LOOKED_AT]
    even, odd = start[::2].count(0), start[1::2].count(0)
    if max(even, odd) * 4 < len(start) or even == odd:
        return None
    return "UTF-16LE" if odd > even else "UTF-16BE"
