"""What the library calls its arguments, as the flags that a command's user gives them by."""

import ast
import re
import shlex

from absl.flags import FLAGS

# Arguments that a flag has another name for.
_OTHER = {
    "format": "from_format",
    "plugins": "plugin",
    "source": "checkpoint",
    "target_format": "format",
    "text_from": "from_text",
}
_TEXT = r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\""
_VALUE = rf"(?:{_TEXT})(?: \| (?:{_TEXT}))*|\((?:{_TEXT}),\)|\d+(?:\.\d+)?|True\b|[A-Z]{{3,}}\b"
# Not a parameter of an address, `csv:x.csv?format=b`; nor `name=x` in code that is shown.
_ARGUMENT = re.compile(rf"(?<![\w.?&/-])([a-z_]+)=(?:({_VALUE})|(?=[\s,;:).]|$))")
_FIELD = re.compile(r"(?<![\w.-])(?=config(?:\.\w+)+=)")


def name_flags(error: BaseException, verb: str) -> None:
    """Has the message of an error that the library raised name the flags of a verb."""
    if len(error.args) == 1 and isinstance(error.args[0], str):
        error.args = (in_flags(error.args[0], verb),)


def in_flags(text: str, verb: str) -> str:
    """A message with `model='ViT-B-32'` as `--model ViT-B-32`, where the verb has such a flag."""
    flags = {flag.name for flag in FLAGS.get_key_flags_for_module(f"clipjax.cli.{verb}")}
    flags |= {"config"} & set(FLAGS)  # of a module that several verbs share
    other = {**_OTHER, "source": "from"} if verb == "convert" else _OTHER

    def flag(found: re.Match[str]) -> str:
        name = other.get(found[1], found[1])
        if name not in flags:
            return found[0]
        return " ".join([f"--{name}", *_words(found[2] or "True")])

    return _ARGUMENT.sub(flag, _FIELD.sub("--", text) if "config" in flags else text)


def _words(value: str) -> list[str]:
    """A value as one writes it in a shell; of several that are allowed, all."""
    if value == "True" or value[0] not in "'\"(":
        return [] if value == "True" else [value]
    texts = [ast.literal_eval(text) for text in re.findall(_TEXT, value)]
    return [" | ".join(map(shlex.quote, texts))]
