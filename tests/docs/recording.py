"""What a document would run: bash itself reads the block, stand-ins write down its words."""

import json
import os
import subprocess
import sys
from pathlib import Path

from blocks import ROOT, Block
from counting import HANGS_S

PROGRAMS = ("clipjax", "bash", "sbatch", "python", "pip", "pytest", "gcloud", "kubectl", "curl")


def record(block: Block, folder: Path) -> list[list[str]]:
    """Argument lists of the programs that a block starts; nothing of them runs.

    Raises:
        AssertionError: bash refuses the block, or it starts a program that is no stand-in.
    """
    venv, log = folder / ".venv" / "bin", folder / "recorded"
    if not venv.exists():
        venv.mkdir(parents=True)
        for name in PROGRAMS:
            script = venv / name
            script.write_text(
                f'#!/bin/bash\nprintf "%s\\0" {name} "$@" >>"$RECORD"\nprintf "\\0" >>"$RECORD"\n'
            )
            script.chmod(0o755)
    log.write_bytes(b"")
    done = subprocess.run(
        ["/bin/bash", "-euo", "pipefail", "-c", block.text],
        cwd=folder,
        env={"PATH": str(venv), "RECORD": str(log)},
        capture_output=True,
        text=True,
        timeout=HANGS_S,
    )
    assert done.returncode == 0, f"{block.where}: {done.stderr}"
    calls = log.read_text(encoding="utf-8").split("\0\0")
    return [call.split("\0") for call in calls if call]


def clipjax_commands(block: Block, folder: Path) -> list[list[str]]:
    """The `clipjax` commands of a block, those of the launchers too: verb, flags."""
    commands = []
    for program, *words in record(block, folder):
        if program == "clipjax":
            commands.append(words)
        elif program in ("bash", "sbatch"):
            at = next(i for i, word in enumerate(words) if word.startswith("launch/"))
            script, flags = ROOT / words[at], words[at + 1 :]
            assert script.is_file(), f"{block.where}: there is no {words[at]}"
            if script.name == "local.sh":
                flags = flags[1:]
            elif flags and not flags[0].startswith("-"):
                flags = flags[1:]  # a verb of tpu_pod.sh
                if flags and flags[0] == "clipjax":
                    commands.append(flags[1:])
                    continue
            if script.name == "local.sh" and flags and not flags[0].startswith("-"):
                commands.append(flags)  # the verb is given
            elif "--config" in flags:
                commands.append(["train", *flags])
    return commands


def parse(commands: list[list[str]]) -> list[str]:
    """What `clipjax` says against each command; empty where it takes the flags and the config."""
    script = Path(__file__).parent / "parsing.py"
    done = subprocess.run(
        [sys.executable, script],
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)},
        input=json.dumps(commands),
        capture_output=True,
        text=True,
        timeout=HANGS_S,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
