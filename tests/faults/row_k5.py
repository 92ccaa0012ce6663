"""K5 and K6: files of a checkpoint that rot, are cut short, are lost, or hold zeros."""

from pathlib import Path

from clipjax.checkpoint import manifest as manifests
from clipjax.checkpoint import restore
from tests.faults.row import Row, Trial
from tests.faults.storing import check_readers, files_of_newest, means_the_same, spoilt_run

FLIPS = 2000
KINDS = ("truncate", "delete", "zero")
FILES = 19  # of a step


def flip(trial: Trial) -> None:
    """One bit of one file, each file as often as another."""
    workdir = spoilt_run(trial)
    files = files_of_newest(workdir)
    path = files[trial.index % len(files)]
    before = path.read_bytes()
    data = bytearray(before)
    data[trial.random.randrange(len(data))] ^= 1 << trial.random.randrange(8)
    path.write_bytes(data)
    check_readers(trial, workdir, is_same=means_the_same(path, before))


def spoil(trial: Trial) -> None:
    """Each file in turn, cut short at a random byte, deleted, or made of zeros."""
    workdir = spoilt_run(trial)
    files = files_of_newest(workdir)
    path, kind = files[trial.index // len(KINDS) % len(files)], KINDS[trial.index % len(KINDS)]
    size = path.stat().st_size
    if kind == "delete":
        path.unlink()
    elif kind == "zero":
        path.write_bytes(bytes(size))
    else:
        path.write_bytes(path.read_bytes()[: trial.random.randrange(size)])
    check_readers(trial, workdir, is_same=False)


def without_digests(run) -> object:
    """A row whose files and leaves are not compared with the manifest's digests."""

    def control(trial: Trial) -> None:
        kept = manifests.verify_files, restore.verify_state
        manifests.verify_files = restore.verify_state = lambda *_: None
        try:
            for index in range(64):
                folder = Path(trial.folder, str(index))
                folder.mkdir()
                run(Trial(index, folder, trial.shared))
        finally:
            manifests.verify_files, restore.verify_state = kept

    return control


ROWS = [
    Row(
        name="K5",
        fault="one flipped bit in a file of the newest step, each file as often",
        holds="eval and convert read what was saved or refuse; a resume takes the step before",
        trials=FLIPS,
        default=3,
        run=flip,
        control=without_digests(flip),
        others="Orbax reads 34 of 44 flips in array data as if they were right",
    ),
    Row(
        name="K6",
        fault="each file of the newest step truncated, deleted, or zeroed",
        holds="eval and convert read what was saved or refuse; a resume takes the step before",
        trials=3 * FILES,
        default=3,
        run=spoil,
        control=without_digests(spoil),
        others="axlearn passes over a step without its index file",
    ),
]
