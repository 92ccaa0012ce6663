"""Credentials are taken out of what is shown or written: the names and places where they stand.

A credential is told by its place alone: between `://` and `@`, behind a name such as `token=`, or
under such a key of a map. What is redacted twice is redacted once, and two texts that differ in
nothing but a credential are equal afterwards, so that a new token makes no new config.
"""

import re
from collections.abc import Mapping
from typing import Any

REDACTED = "[redacted]"

# Words that make a name one of a credential wherever they stand in it.
_ALWAYS = {
    "accesskey",
    "accesstoken",
    "apikey",
    "authkey",
    "authorization",
    "authtoken",
    "bearer",
    "credential",
    "credentials",
    "jwt",
    "passphrase",
    "passwd",
    "password",
    "passwords",
    "privatekey",
    "pwd",
    "sas",
    "secret",
    "secretkey",
    "secrets",
    "sig",
    "signature",
}
# Words that do so at the end of a name, unless they are of language, pictures or tables.
_AT_END = {"auth", "key", "token"}
_HARMLESS = {
    *("bos", "cls", "eos", "mask", "pad", "sep", "unk", "start", "end", "first", "last", "special"),
    *("class", "patch", "image", "picture", "text", "caption", "label", "language", "json"),
    *("column", "field", "row", "sort", "group", "primary", "foreign", "partition", "cache"),
    *("public", "query", "metric", "random", "rng", "prng"),
}
# Fields of a config that hold words of a dataset: a class may be called "key", or "token".
_WORDS = {"class_names", "templates"}
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")

# Each pattern reads a text once from end to end: names and captions may be long and hostile. The
# second form is of a password that holds a slash, digits there are a port; the third of a URL that
# was taken for a local path.
_PAIR = r"[^\s/:@'\"]+:(?!\d+/)[^\s:@'\"]+@"
USER_INFO = re.compile(rf"(?<=://)(?:[^\s/?#'\"]+@|{_PAIR})|(?<=\w:/)(?!/){_PAIR}")
HEADER = re.compile(r"\b(authorization\s*:\s*|bearer\s+)(?:(?:bearer|basic)\s+)?[^\s'\"]{6,}", re.I)
NAME = re.compile(r"(?<![\w.-])([\w.-]+)\s?=\s?")
_VALUE = re.compile(r"""(["'])(?:(?!\1).)*\1?|(?:[^\s&;,'"<>]|,(?=[^\s'"]))+""")
ENTRY = re.compile(r"""(?:(?<=")([\w.-]+)"|(?<=')([\w.-]+)')\s*:\s*(?=["'])""")
LINE = re.compile(r"^[ \t]*([\w.-]+):[ \t]+(?=\S)", re.M)  # of a config as it is printed
_REST = re.compile(r".*")


def is_secret_name(name: str) -> bool:
    """Whether a name of an option, parameter or variable is that of a credential."""
    words = [word.lower() for word in _WORD.findall(name.rpartition(".")[2])]
    if _ALWAYS.intersection(words):
        return True
    if words[-1:] == ["id"]:
        words = words[:-1]  # AWSAccessKeyId
    if not words or words[-1] not in _AT_END:
        return False
    return len(words) == 1 or words[-2] not in _HARMLESS


def redact(text: str) -> str:
    """Replaces the credentials in a text, which may be a URL, a SPEC, a message or a log line."""
    text = USER_INFO.sub(f"{REDACTED}@", text)
    text = HEADER.sub(rf"\1{REDACTED}", text)
    for name, value in ((NAME, _VALUE), (ENTRY, _VALUE), (LINE, _REST)):
        text = _redact_values(text, name, value)
    return text


def _redact_values(text: str, named: re.Pattern[str], values: re.Pattern[str]) -> str:
    parts, end = [], 0
    for name in named.finditer(text):
        if name.start() < end or not is_secret_name(next(filter(None, name.groups()))):
            continue
        if value := values.match(text, name.end()):
            quote = value[0][0] if value[0][0] in "\"'" else ""
            parts += [text[end : name.end()], quote, REDACTED, quote]
            end = value.end()
    return "".join([*parts, text[end:]])


def redact_tree(value: Any, *, secret: bool = False) -> Any:
    """Replaces the credentials in a config or another tree of plain maps, lists and scalars.

    Args:
        value: the tree.
        secret: whether it stands under the name of a credential.
    """
    if isinstance(value, Mapping):
        found = {}
        for key, item in value.items():
            name = key if isinstance(key, str) else ""
            if name in _WORDS and isinstance(item, Mapping | list | tuple):
                found[key] = item
            else:
                is_secret = secret or is_secret_name(name)
                found[redact(name) or key] = redact_tree(item, secret=is_secret)
        return found
    if isinstance(value, list | tuple):
        return type(value)([redact_tree(item, secret=secret) for item in value])
    if isinstance(value, str):
        return REDACTED if secret and value else redact(value)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return REDACTED if secret and is_number else value
