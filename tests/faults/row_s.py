"""S1, S2: files and names from the web that want to be run, and secrets that want to stay so."""

import contextlib
import copy
import io
import json
import os
import pickle
import shutil
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from tests.faults.row import Row, Trial

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "tests" / "helpers"))
from commands import in_this_process  # noqa: E402  no package

from tests.integration import conftest as commands_of_people  # noqa: E402
from tests.integration import test_trust as secrets  # noqa: E402
from tests.trust import conftest as bent  # noqa: E402

VERBS = ("classify", "eval", "score", "convert", "finetune")
# Parts of a contract that name something of Python's; {} is the canary.
EVIL: dict[str, dict[str, Any]] = {
    "tokenizer": {"name": "os:system", "command": "touch {}"},
    "image": {"name": "subprocess:getoutput", "cmd": "touch {}"},
    "text": {"name": "subprocess:getoutput", "cmd": "touch {}", "context_length": 16},
    "preprocess": {"name": "os:system", "command": "touch {}"},
    "deep": {"layers": [{"name": "os:system", "command": "touch {}"}]},
}
# What a shell would do, where a dataset is named.
SPECS = (
    "pipe:touch {}",
    "webdataset:pipe:touch {}",
    "folder:$(touch {})",
    "csv:x.csv; touch {}",
    "os.system:touch {}",
)


class Payload:
    """What an attacker's pickle does when it is loaded."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


def pickles(canary: Path) -> list[bytes]:
    """Pickles that make the canary when Python's unpickler reads them."""
    command = f"mkdir {canary}"
    code = f"__import__('os').mkdir({str(canary)!r})"
    chain = OrderedDict(weight=Payload(os.system, command))
    return [
        pickle.dumps(Payload(os.system, command), 2),
        pickle.dumps(Payload(os.system, command), 4),
        pickle.dumps(Payload(os.system, command), 0),
        pickle.dumps(Payload(eval, code), 2),
        pickle.dumps(Payload(exec, code), 5),
        pickle.dumps({"state_dict": chain}, 2),
        pickle.dumps(Payload(os.mkdir, str(canary)), 2),
        b"(cos\nsystem\nS'" + command.encode() + b"'\no.",  # OBJ
        b"(S'" + command.encode() + b"'\nios\nsystem\n.",  # INST
        b'c__builtin__\neval\n(S"' + code.encode() + b'"\ntR.',
    ]


def archive(path: Path, data: bytes) -> None:
    """torch's archive of a pickle."""
    with zipfile.ZipFile(path, "w") as file:
        for name, value in (("data.pkl", data), ("byteorder", b"little"), ("data/0", bytes(96))):
            file.writestr(f"a/{name}", value)


def arrays(path: Path, data: bytes) -> None:
    """numpy's archive with an array of objects."""
    header = b"{'descr': '|O', 'fortran_order': False, 'shape': (1,), }"
    header += b" " * (63 - (10 + len(header)) % 64) + b"\n"
    with zipfile.ZipFile(path, "w") as file:
        magic = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little")
        file.writestr("params/img/kernel.npy", magic + header + data)


FORMS: tuple[tuple[str, Callable[[Path, bytes], Any]], ...] = (
    ("weights.pt", archive),
    ("weights.bin", Path.write_bytes),
    ("weights.npz", arrays),
)
PICKLES = len(pickles(Path("canary")))


def cases() -> Iterator[tuple[str, Any, Any]]:
    """(kind, what, how) of each input."""
    for verb in VERBS:
        for part in EVIL:
            yield "manifest", part, verb
    for form in range(len(FORMS)):
        for number in range(PICKLES):
            yield "weights", number, form
    for spec in SPECS:
        yield "spec", spec, None


def arguments(trial: Trial, canary: Path) -> tuple[list[Any], str]:
    """The command that opens the input of a trial, and what its refusal says."""
    kind, what, how = list(cases())[trial.index]
    if kind == "weights":
        name, write = FORMS[how]
        write(trial.folder / name, pickles(canary)[what])
        to = trial.folder / "to"
        return ["convert", "--from", trial.folder / name, "--to", to], name
    if kind == "spec":
        return ["data", "stats", what.replace("{}", str(canary))], ""
    original = trial.shared / "original"
    if not original.exists():
        made = trial.shared / f"original_{os.getpid()}"
        bent.write(made)
        with contextlib.suppress(OSError):  # another worker was first
            made.rename(original)
    run = Path(shutil.copytree(original, trial.folder / "run"))
    spec = json.loads(json.dumps(EVIL[what]).replace("{}", str(canary), 1))

    def change(fields: dict[str, Any]) -> None:
        group = fields["contract"]
        group = group if what == "preprocess" else group["model"]
        group[what] = copy.deepcopy(spec)

    bent.rewrite_manifest(run / "checkpoints" / "1", change)
    picture = trial.folder / "picture.png"
    Image.new("RGB", (20, 16), (200, 30, 30)).save(picture)
    return list(bent.verbs(run, picture, trial.folder)[how]), "--plugin"


def is_refused(trial: Trial) -> None:
    """One sentence, and no canary."""
    canary = trial.folder / "canary"
    command, words = arguments(trial, canary)
    with in_this_process() as run:
        done = run(*command)
    assert not canary.exists(), f"{command}: the canary is there"
    assert done.code in (1, 2), f"{command}: exit {done.code}: {done.out[-500:]}"
    assert "Traceback" not in done.err, done.err
    assert len(done.err.strip().splitlines()) == 1 or not words, done.err
    assert words in done.err, f"{words} not in {done.err}"


def is_run(trial: Trial) -> None:
    """Python's own reader makes the canary of each pickle, and a shell that of a name."""
    canary, made = trial.folder / "canary", 0
    for data in pickles(canary):
        pickle.load(io.BytesIO(data))
        made += canary.exists()
        canary.rmdir()
    for spec in (f"x; touch {canary}", EVIL["image"]["cmd"].replace("{}", str(canary))):
        os.system(f"true {spec}" if spec.startswith("x") else spec)
        made += canary.exists()
        canary.unlink()
    assert made != PICKLES + 2, f"all {made} canaries are made where nothing refuses"


def keeps_secrets(trial: Trial, off: str = "") -> None:
    """A run whose data is behind a credential, with keys in the environment."""
    secrets.write_classes(trial.folder / "data")
    home = trial.folder / "home"
    home.mkdir()
    person = secrets.Person(commands_of_people.Command(), trial.folder / "data", home)
    secret = secrets.CANARIES[trial.index]
    person.train(secret=secret, off=off)
    found = secrets.found_in(home, secrets.CANARIES)
    assert not found, f"{found}"
    assert not any(word in person.said[0] for word in secrets.CANARIES), "it is shown"


ROWS = [
    Row(
        name="S1",
        fault="a manifest that names a function, a pickle as weights of three kinds, a shell's "
        "command as a dataset",
        holds="a canary is never made; the refusal is one sentence",
        trials=len(list(cases())),
        default=5,
        run=is_refused,
        control=is_run,
        others="Composer has 4 such tests of its restricted unpickler, Streaming 4 of paths",
    ),
    Row(
        name="S2",
        fault="credentials in the address of the data, keys in the environment",
        holds="no file that a run writes holds them, nor what it shows",
        trials=2,
        default=0,  # tests/integration/test_trust.py asks more of one such run
        run=keeps_secrets,
        control=lambda trial: keeps_secrets(trial, off="off"),
        others="no test of it was found",
    ),
]
