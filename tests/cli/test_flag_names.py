"""Messages of the library, which name arguments, as a command shows them."""

import json
import subprocess
import sys

import pytest

SHOWN = {
    "convert": {
        "add model='ViT-L-14' (gelu)": "add --model ViT-L-14 (gelu)",
        "activation='gelu' | 'quick_gelu'": "--activation gelu | quick_gelu",
        "leave model= and which= out": "leave --model and --which out",
        "tokenizer='/a b.model': no such": "--tokenizer '/a b.model': no such",
        "lora_alpha=0.0: x, logit_scale=3.": "--lora_alpha 0.0: x, --logit_scale 3.",
        "give text_from=DIRECTORY": "give --from_text DIRECTORY",
        "source= is it; target_format='hf'": "--from is it; --format hf",
    },
    "classify": {
        "source= is it": "--checkpoint is it",
        "by plugins=('my_lab.towers',)": "by --plugin my_lab.towers",
        "take them by templates='plain'": "take them by --templates plain",
        # What is no argument, or none of the verb's, stays.
        "csv:a.csv?templates=b&format=c": "csv:a.csv?templates=b&format=c",
        "text.activation='gelu', my_model='x'": "text.activation='gelu', my_model='x'",
        "take_over=True, config.seed=1": "take_over=True, config.seed=1",
    },
    "train": {
        "add take_over=True": "add --take_over",
        "add config.loss.dtype=float32": "add --config.loss.dtype=float32",
        "by config=FILE, model='ViT-L-14'": "by --config FILE, model='ViT-L-14'",
    },
}
# Each verb in a process of its own, as a command is: two have flags of one name.
CODE = """
import importlib, json, logging, sys
from clipjax.cli import logs
from clipjax.cli.flag_names import in_flags, name_flags
verb, texts = sys.argv[1], json.loads(sys.argv[2])
importlib.import_module(f"clipjax.cli.{verb}")
errors = [*map(ValueError, texts), OSError(2, "which=", "which=")]
for error in errors:
    name_flags(error, verb)
print(json.dumps([in_flags(text, verb) for text in texts]))
print(json.dumps([error.args[0] for error in errors]))
logs.configure(verb)
logging.warning("%s", texts[0])
"""


@pytest.mark.parametrize("verb", SHOWN)
def test_arguments_are_shown_as_the_flags_of_the_verb(verb):
    texts, wanted = list(SHOWN[verb]), list(SHOWN[verb].values())
    done = subprocess.run(
        [sys.executable, "-c", CODE, verb, json.dumps(texts + wanted)],
        capture_output=True,
        text=True,
        check=True,
    )
    shown, raised = map(json.loads, done.stdout.splitlines())
    assert shown == wanted + wanted
    assert raised == [*shown, 2]  # an error of the system stays whole
    assert done.stderr.endswith(f"WARNING {wanted[0]}\n")
