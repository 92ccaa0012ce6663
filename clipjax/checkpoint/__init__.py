"""Checkpoints: saving and resuming a run, and parameters for evaluation and fine-tuning."""

from clipjax.checkpoint.contract import (
    check_contract,
    has_key,
    make_contract,
    spec_of_contract,
)
from clipjax.checkpoint.manager import CheckpointManager, CheckpointSaveError
from clipjax.checkpoint.manifest import DamagedCheckpointError, Manifest, read_manifest
from clipjax.checkpoint.pretrained import (
    LoadReport,
    load_model_state,
    load_params,
    load_pretrained,
    load_variables,
    resolve_checkpoint,
)
from clipjax.checkpoint.resume import check_resume
from clipjax.checkpoint.snapshot import NonFiniteStateError
from clipjax.checkpoint.start import Start, find_start

__all__ = [
    "CheckpointManager",
    "CheckpointSaveError",
    "DamagedCheckpointError",
    "LoadReport",
    "Manifest",
    "NonFiniteStateError",
    "Start",
    "check_contract",
    "check_resume",
    "find_start",
    "has_key",
    "load_model_state",
    "load_params",
    "load_pretrained",
    "load_variables",
    "make_contract",
    "read_manifest",
    "resolve_checkpoint",
    "spec_of_contract",
]
