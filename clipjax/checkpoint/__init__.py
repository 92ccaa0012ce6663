"""Checkpoints: saving and resuming a run, and parameters for evaluation and fine-tuning."""

from clipjax.checkpoint.best import check_best
from clipjax.checkpoint.choice import (
    CHECKPOINTS,
    Choice,
    choose_step,
    naming_older_steps,
    open_checkpoint,
    read_newest,
)
from clipjax.checkpoint.contract import (
    check_contract,
    make_contract,
    spec_of_contract,
)
from clipjax.checkpoint.folders import MANIFEST, committed_steps
from clipjax.checkpoint.manager import CheckpointManager
from clipjax.checkpoint.manifest import (
    DamagedCheckpointError,
    LeafRecord,
    Manifest,
    digest,
    manifest_digest,
    read_manifest,
    verify_files,
)
from clipjax.checkpoint.model_spec import check_model, needs_file, spec_in
from clipjax.checkpoint.ownership import WorkdirTakenError, living_owner, owned
from clipjax.checkpoint.restore import load_model_state, load_params, load_variables
from clipjax.checkpoint.resume import check_resume, is_same_run
from clipjax.checkpoint.saving import CheckpointSaveError
from clipjax.checkpoint.snapshot import NonFiniteStateError
from clipjax.checkpoint.start import LoadReport, Start, find_start, load_pretrained
from clipjax.checkpoint.streaming import StreamedLeaf, write_step
from clipjax.checkpoint.tokenizer import (
    MissingTokenizer,
    attach_tokenizer,
    load_tokenizer,
    without_tokenizer,
)
