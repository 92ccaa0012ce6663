"""The end of a save, which the lead process does alone: commit the new step, delete the old."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clipjax.checkpoint import folders
from clipjax.checkpoint import manifest as manifests
from clipjax.checkpoint.manifest import LeafRecord, Manifest


def commit_step(
    step_dir: Path,
    step: int,
    leaves: tuple[LeafRecord, ...],
    metadata: Mapping[str, Any],
    attachments: Mapping[str, bytes],
    bad_examples: Mapping[str, Any] | None = None,
) -> None:
    """Hashes the files of a step whose arrays are written, and writes its manifest.

    Args:
        step_dir: the folder.
        step: its number.
        leaves: of the state.
        metadata: the manifest's `config`, `contract`, and so on.
        attachments: further files to write, by their path in the folder.
        bad_examples: of the data, up to this step.
    """
    for path, data in attachments.items():
        file = step_dir / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
    manifest = Manifest(
        step=step,
        leaves=leaves,
        files=manifests.record_files(step_dir),
        versions=manifests.library_versions(),
        config_sha256=manifests.digest(metadata["config"]),
        bad_examples=dict(bad_examples or {}),
        **metadata,
    )
    manifests.write_manifest(step_dir, manifest)


def delete_old_steps(directory: Path, *, keep: int, keep_every: int | None) -> None:
    """Deletes what retention gives up, and what cut-off saves left behind.

    Called after a commit, so that the newest step that stays has just been hashed.
    """
    folders.sweep(directory, folders.UNFINISHED, folders.DELETING)
    committed = folders.committed_steps(directory)
    for step in folders.steps_to_delete(committed, keep=keep, keep_every=keep_every):
        folders.delete_step(directory / str(step))
