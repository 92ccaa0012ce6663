"""`clipjax doctor [--config configs/x.py[:args]] [--workdir DIR] [--json FILE]`.

Examines the machine before the run, or all hosts of it: devices, versions, limits, clocks, the
workdir's store and disk, and whether the data is as quick as the devices. One page; exit 1 if
something would stop the run or starve its devices.
"""

import json
import math

from absl import flags

from clipjax.cli import config_flag, joining, opening
from clipjax.cli.main import no_positional
from clipjax.cli.output import show_page
from clipjax.processes import distributed

_CONFIG = config_flag.define()
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder that the run is to write to.")
_SAMPLES_PER_S = flags.DEFINE_float(
    "samples_per_s", None, "Examples a second that all devices take, where you know it."
)
_MFU = flags.DEFINE_float("mfu", 0.40, "Assumed share of the devices' peak, (0, 1], else.")
_SECONDS = flags.DEFINE_float("seconds", 5.0, "Of each of the two measurements of the data.")
_JSON = flags.DEFINE_string("json", None, "Also write the findings to this file.")
flags.adopt_module_key_flags(opening)
flags.adopt_module_key_flags(joining)


def main(argv: list[str]) -> int:
    """Examines, and prints the page; 0 if all is well, else 1."""
    no_positional(argv)
    if not 0 < _MFU.value <= 1:
        raise ValueError(f"--mfu={_MFU.value}: a share of the peak, in (0, 1]")
    for name, value in (("samples_per_s", _SAMPLES_PER_S.value), ("seconds", _SECONDS.value)):
        if value is not None and not 0 < value < math.inf:
            raise ValueError(f"--{name}={value}: a number above 0")
    from clipjax.data.storage.files import check_writable, local_path, write
    from clipjax.data.storage.paths import data_path
    from clipjax.doctor import Demand, examine, is_well, to_json, to_text
    from clipjax.experiment import MOUNT, resolve

    table = data_path(_JSON.value) if _JSON.value else None
    workdir = local_path(_WORKDIR.value, way=f"{MOUNT} as --workdir") if _WORKDIR.value else None
    resolved = None
    if _CONFIG.value is not None:
        opening.put_into(_CONFIG.value)
        resolved = resolve(_CONFIG.value, workdir=workdir)  # before the others are waited for
    joining.join()
    if table and distributed.is_lead():
        check_writable(table)
    told = examine(
        resolved,
        workdir,
        demand=Demand(_SAMPLES_PER_S.value, _MFU.value),
        seconds=_SECONDS.value,
    )
    if distributed.is_lead():
        show_page(to_text(told))
        if table:
            text = json.dumps(to_json(told), indent=2) + "\n"
            write(table, text.encode("utf-8"))
    return 0 if is_well(told) else 1
