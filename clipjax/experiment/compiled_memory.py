"""What the compiler says of the memory of a step."""

import re
from typing import Any, NamedTuple

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_NEEDED = (
    re.compile(r"\((?P<used>[\d.]+)(?P<unit>[KMGT]?)\) exceeds available HBM \((?P<of>[\d.]+)"),
    re.compile(r"Used (?P<used>[\d.]+)(?P<unit>[KMGT]?) of (?P<of>[\d.]+)[KMGT]? hbm"),
)


class Memory(NamedTuple):
    """HBM of one device, bytes.

    Attributes:
        arguments: train state and batch.
        temporaries: activations, gradients, buffers of collectives.
        outputs: the new state and the metrics.
        aliased: outputs that take the place of arguments (the state is donated).
        code: the program.
    """

    arguments: int
    temporaries: int
    outputs: int
    aliased: int
    code: int

    @property
    def total(self) -> int:
        """What has to fit."""
        return self.arguments + self.temporaries + self.outputs - self.aliased + self.code


def read_memory(analysis: Any) -> Memory:
    """Reads XLA's memory analysis of a compiled program."""
    return Memory(
        arguments=analysis.argument_size_in_bytes,
        temporaries=analysis.temp_size_in_bytes,
        outputs=analysis.output_size_in_bytes,
        aliased=analysis.alias_size_in_bytes,
        code=analysis.generated_code_size_in_bytes,
    )


def needed_bytes(message: str) -> int | None:
    """HBM that a refused program needs, from the compiler's message; None for other errors."""
    if "RESOURCE_EXHAUSTED" not in message and "hbm" not in message.lower():
        return None
    for pattern in _NEEDED:
        if match := pattern.search(message):
            return int(float(match["used"]) * _UNITS[match["unit"]])
    return None
