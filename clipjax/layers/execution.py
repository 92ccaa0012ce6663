"""How a tower runs on its devices: what no parameter, and no number beyond rounding, depends on."""

import dataclasses
from typing import Any

from flax import linen as nn

ATTENTIONS = ("auto", "xla", "cudnn", "pallas")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Execution:
    """How the layers of a tower are computed.

    Attributes:
        platform: of the devices, `cpu`, `gpu` or `tpu`. On a CPU every layer keeps the plain form.
        attention: of ATTENTIONS, see `clipjax.layers.attention.attend`.
        scan: True compiles one block and scans it over stacked parameters; False unrolls.
        remat: what the backward pass computes again, a row of REMAT_POLICIES or none.
    """

    platform: str = "cpu"
    attention: str = "auto"
    scan: bool = True
    remat: str = "none"


PLAIN = Execution()


def runtime_fields(execution: Execution) -> dict[str, Any]:
    """What a tower may have a field for, beside its spec; it is given those that it has."""
    return {
        "execution": execution,
        "attention": execution.attention,
        "scan_layers": execution.scan,
        "remat": execution.remat,
    }


def under_execution(tower: nn.Module, execution: Execution) -> Any:
    """The same tower, of the same parameters, run in another way."""
    given = runtime_fields(execution).items()
    return tower.clone(**{name: value for name, value in given if hasattr(tower, name)})
