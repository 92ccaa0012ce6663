"""Writes big_vision_fields.json: what a person sets in big_vision's image-text configs.

    python tests/golden/docs/make_big_vision_fields.py CHECKOUT   (a git clone of big_vision)

Of the configs, the names of their arguments and of the fields that they set; of the trainer and
what it hands the config to, the fields that they read. Names alone are written.
"""

import ast
import json
import subprocess
import sys
from pathlib import Path

URL = "https://github.com/google-research/big_vision"
COMMIT = "0127fb6b337ee2a27bf4e54dea79cff176527356"
CONFIGS = {
    "big_vision/configs/proj/image_text/siglip_lit_coco.py": COMMIT,
    # The last commit that has it.
    "big_vision/configs/proj/image_text/lit_coco.py": "430df79cd16dd6f7f882fd8c0ed2e7c9ea4c1db8",
}
# What a function's variables are in the config.
READERS = {
    "big_vision/trainers/proj/image_text/siglip.py": {"config": ""},
    "big_vision/optax.py": {"config": ""},
    "big_vision/input_pipeline.py": {"input_config": "input.", "config": "input."},
}
TOWERS = {
    "big_vision/models/proj/image_text/two_towers.py": "model.",
    "big_vision/models/vit.py": "model.image.",
    "big_vision/models/proj/image_text/text_transformer.py": "model.text.",
}
SCHEDULE = ("big_vision/utils.py", "create_learning_rate_schedule")
_OF_TRAINER = {"total_steps", "batch_size", "data_size"}  # what the trainer adds by itself


def chain(node):
    """`config.a.b` as ["config", "a", "b"]; None of anything else."""
    names = []
    while isinstance(node, ast.Attribute):
        names.insert(0, node.attr)
        node = node.value
    return [node.id, *names] if isinstance(node, ast.Name) else None


def keys(node, prefix):
    """Dotted names of what a dict, or a ConfigDict of one, holds."""
    if isinstance(node, ast.Call) and node.args:
        yield from keys(node.args[0], prefix)
    if isinstance(node, ast.Dict):
        for key, value in zip(node.keys, node.values, strict=True):
            if isinstance(key, ast.Constant):
                yield f"{prefix}{key.value}"
                yield from keys(value, f"{prefix}{key.value}.")


def set_in(tree):
    """Arguments, and fields that a config sets."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "parse_arg":
            yield from (f":{keyword.arg}" for keyword in node.keywords)
        if isinstance(node, ast.Assign):
            path = chain(node.targets[0])
            if path and path[0] == "config" and path[1:]:
                yield ".".join(path[1:])
                yield from keys(node.value, ".".join(path[1:]) + ".")


def read_in(tree, variables):
    """Fields that code reads from variables, as attributes, items and by get."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and chain(node.targets[0]) == ["per_pipeline_configs"]:
            yield from (f"input.{name}" for name in ast.literal_eval(node.value))
        owner, name = read_by(node)
        if owner in variables and isinstance(name, str) and name not in ("get", "items", "to_dict"):
            yield variables[owner] + name


def read_by(node):
    """The variable and the field that a piece of code reads; None where it reads none."""
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
        return node.value.id, node.attr
    if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name):
        return node.value.id, getattr(node.slice, "value", None)
    if isinstance(node, ast.Compare) and is_text(node.left):
        return getattr(node.comparators[0], "id", None), node.left.value
    if isinstance(node, ast.Call) and node.args and is_text(node.args[0]):
        if getattr(node.func, "id", "") == "get_steps":
            return "config", f"{node.args[0].value}_steps"
        if (path := chain(node.func)) and path[1:] == ["get"]:
            return path[0], node.args[0].value
    return None, None


def is_text(node):
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def fields_of(tree):
    """Fields of a tower's module."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef) and node.name in ("_Model", "Model"):
            yield from (n.target.id for n in node.body if isinstance(n, ast.AnnAssign))


def arguments_of(tree, name):
    """Arguments of a function, and what it takes out of `kw`."""
    (function,) = (n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == name)
    yield from (a.arg for a in function.args.args)
    for node in ast.walk(function):
        if isinstance(node, ast.Call) and chain(node.func) == ["kw", "get"]:
            yield node.args[0].value
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "to_steps":
            yield f"{node.args[0].value}_steps"


def main(checkout):
    def tree(path, commit=COMMIT):
        command = ["git", "-C", checkout, "show", f"{commit}:{path}"]
        return ast.parse(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

    found = {path: sorted(set(set_in(tree(path, commit)))) for path, commit in CONFIGS.items()}
    found |= {path: sorted(set(read_in(tree(path), names))) for path, names in READERS.items()}
    for path, prefix in TOWERS.items():
        found[path] = sorted(prefix + name for name in set(fields_of(tree(path))))
    path, name = SCHEDULE
    found[path] = sorted(
        {f"schedule.{a}" for a in arguments_of(tree(path), name)}
        - {f"schedule.{a}" for a in _OF_TRAINER}
    )
    document = {"source": URL, "commit": COMMIT, "configs": CONFIGS, "fields": found}
    target = Path(__file__).with_name("big_vision_fields.json")
    target.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
