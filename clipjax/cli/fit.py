"""`clipjax fit --sweep DIR | --ladder laion [--config configs/x.py[:args]]`.

Fits scaling laws on the runs of a sweep, or on a published ladder: the error over compute, and over
size and samples. --config asks them what it should reach, with the interval; with --topology beside
what it takes there. Nothing is trained or compiled.
"""

import json
import math

from absl import flags

from clipjax.cli import config_flag, opening
from clipjax.cli.main import no_positional
from clipjax.cli.output import show, show_page

_SWEEP = flags.DEFINE_string("sweep", None, "The --workdir of `clipjax sweep`.")
_LADDER = flags.DEFINE_string("ladder", None, "A published ladder: laion.")
_CONFIG = config_flag.define()
_METRIC = flags.DEFINE_string(
    "metric", None, "The result, by default the first; a `-` in front: smaller is better, a loss."
)
_PARTS = flags.DEFINE_integer(
    "parts",
    None,
    "The law of compute is of the best run in each of so many equal parts of log compute; 0: of "
    "all runs. By default 5 for a ladder, 0 for a sweep.",
    lower_bound=0,
)
_ALL_RUNS = flags.DEFINE_bool(
    "all_runs", False, "Of a sweep's runs of one size and length take all, not the best one: seeds."
)
_LEVEL = flags.DEFINE_float("level", 0.9, "Of the intervals, in (0, 1).")
_RESAMPLES = flags.DEFINE_integer("resamples", 1000, "Of the runs, by bootstrap.", lower_bound=100)
_SEED = flags.DEFINE_integer("seed", 0, "Of the resamples.", lower_bound=0)
_TOPOLOGY = flags.DEFINE_string(
    "topology", None, "What --config would run on, as for `clipjax plan`: its cost."
)
_MFU = flags.DEFINE_float("mfu", 0.40, "Assumed model FLOPs utilisation of that run, (0, 1].")
_PRICE = flags.DEFINE_float("price", None, "USD for one chip and hour.")
_JSON = flags.DEFINE_string("json", None, "Also write what was found to this file.")
_PAGE = flags.DEFINE_string("page", None, "Also write a page, FILE.html.")
flags.adopt_module_key_flags(opening)


def main(argv: list[str]) -> int:
    """Fits, prints the laws and what they expect of the config."""
    no_positional(argv)
    if bool(_SWEEP.value) == bool(_LADDER.value):
        raise ValueError("give one of --sweep DIR and --ladder laion")
    if not 0 < _LEVEL.value < 1:
        raise ValueError(f"--level={_LEVEL.value}: a share, in (0, 1)")
    if not 0 < _MFU.value <= 1:
        raise ValueError(f"--mfu={_MFU.value}: a share of the peak, in (0, 1]")
    if _PRICE.value is not None and not 0 <= _PRICE.value < math.inf:
        raise ValueError(f"--price={_PRICE.value}: USD for one chip and hour, 0 or more")
    if _TOPOLOGY.value and _CONFIG.value is None:
        raise ValueError("--topology says what a run costs: name it, --config configs/x.py")
    from clipjax import scaling
    from clipjax.data.storage.files import local_path, write
    from clipjax.data.storage.paths import data_path
    from clipjax.evals.record_lines import check_output
    from clipjax.experiment import MOUNT, resolve
    from clipjax.plan import Assumptions

    check_output(_PAGE.value, "--page")
    check_output(_JSON.value, "--json")
    if _LADDER.value is not None:
        evidence = scaling.read_ladder(_LADDER.value, _METRIC.value)
        parts = scaling.LAION_PARTS
    elif _SWEEP.value is not None:
        folder = local_path(_SWEEP.value, way=f"{MOUNT} as --sweep")
        evidence = scaling.read_sweep(folder, _METRIC.value, best=not _ALL_RUNS.value)
        parts = 0
    fit = scaling.fit_scaling(
        evidence,
        parts=parts if _PARTS.value is None else _PARTS.value,
        level=_LEVEL.value,
        num_resamples=_RESAMPLES.value,
        seed=_SEED.value,
    )
    expectation = None
    if _CONFIG.value is not None:
        opening.put_into(_CONFIG.value)
        resolved = resolve(_CONFIG.value, to_run=False)
        expectation = scaling.expect(
            fit,
            config_flag.file_of(flags.FLAGS),
            resolved.stages,
            _TOPOLOGY.value,
            Assumptions(mfu=_MFU.value, price=_PRICE.value),
        )
    show_page(scaling.to_text(fit, expectation))
    if _JSON.value:
        text = json.dumps(scaling.to_json(fit, expectation), indent=1, allow_nan=False) + "\n"
        write(data_path(_JSON.value), text.encode("utf-8"))
    if _PAGE.value:
        write(data_path(_PAGE.value), scaling.scaling_page(fit, expectation).encode("utf-8"))
        show(f"page: {_PAGE.value}")
    return 0
