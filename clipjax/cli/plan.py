"""`clipjax plan --config configs/x.py[:args] --topology v5e:16x16 [--json FILE] [--search]`.

Topologies of GPUs: `h100:8` is one host, `h100:32x8` hosts x GPUs of a host.
"""

import json
import math

from absl import flags

from clipjax.cli import config_flag, opening
from clipjax.cli.main import given, no_positional
from clipjax.cli.output import show_page

_CONFIG = config_flag.define()
_TOPOLOGY = flags.DEFINE_string(
    "topology", None, "Chip and shape: v5e:16x16; of GPUs, h100:8 or hosts x GPUs."
)
_JSON = flags.DEFINE_string("json", None, "File to write the plan to as JSON.")
_MFU = flags.DEFINE_float("mfu", 0.40, "Assumed model FLOPs utilisation of the run, (0, 1].")
_PRICE = flags.DEFINE_float("price", None, "USD for one chip and hour; prints the run's cost.")
_SEARCH = flags.DEFINE_bool("search", False, "Compile other settings and batches, too: minutes.")
_COMPILATIONS = flags.DEFINE_integer("search_compilations", 8, "Settings to compile at most.")
flags.adopt_module_key_flags(opening)


def main(argv: list[str]) -> int:
    """Compiles the config's step for the topology and prints the page; 0 if it fits, else 1.

    What is known is printed before the next compilations, which take minutes.
    """
    no_positional(argv)
    how = ": clipjax plan --config configs/x.py --topology v5e:16x16"
    config, name = given(_CONFIG.value, "--config", how), given(_TOPOLOGY.value, "--topology", how)
    if not 0 < _MFU.value <= 1:
        raise ValueError(f"--mfu={_MFU.value}: a share of the peak, in (0, 1]")
    if _PRICE.value is not None and not 0 <= _PRICE.value < math.inf:
        raise ValueError(f"--price={_PRICE.value}: USD for one chip and hour, 0 or more")
    if _COMPILATIONS.value < 0:
        raise ValueError(f"--search_compilations={_COMPILATIONS.value}: a number, 0 or more")
    # Only now: the platform has to be settled before the first use of JAX.
    from clipjax import plan as planning
    from clipjax.data.storage.files import check_writable, write
    from clipjax.data.storage.paths import data_path
    from clipjax.experiment import resolve

    table = data_path(_JSON.value) if _JSON.value else None
    if table:
        check_writable(table)  # before the work
    topology = planning.make_topology(name)
    opening.put_into(config)
    resolved = resolve(config, to_run=False)
    assumptions = planning.Assumptions(mfu=_MFU.value, price=_PRICE.value)
    plan = planning.make_plan(resolved, topology)
    show_page(planning.to_text(plan, assumptions))
    result = planning.to_json(plan, assumptions)
    if _SEARCH.value:
        # Half of the compilations for what fits, half for other ways to run the best of it.
        first_half = _COMPILATIONS.value - _COMPILATIONS.value // 2
        candidates = planning.search_settings(resolved, topology, plan, max_compilations=first_half)
        show_page(planning.settings_to_text(candidates, plan))
        best = planning.best_setting(candidates, plan)
        variations = []
        if best is not None and best.plan is not None:
            variations = planning.search_variations(
                planning.with_setting(resolved, best.setting),
                topology,
                best.plan,
                max_compilations=_COMPILATIONS.value // 2,
            )
            show_page(planning.variations_to_text(variations))
        batch = planning.largest_batch(resolved, topology, plan)
        show_page(planning.largest_batch_to_text(batch, plan))
        result["search"] = planning.search_to_json(candidates, batch)
        result["search"]["variations"] = planning.variations_to_json(variations)
    if table:
        write(table, (json.dumps(result, indent=2) + "\n").encode("utf-8"))
    return 0 if plan.fits else 1
