"""A start that hangs is ended by its own limit, which says in what it hung."""

import pytest

from clipjax import faults
from clipjax.processes import exit_codes

POINTS = {
    "start.data": ("data_s", "opening the data"),
    "restore": ("restore_s", "restoring the state"),
    "compile": ("compile_s", "compiling the step"),
}


@pytest.mark.slow
@pytest.mark.parametrize("point", POINTS)
def test_a_start_that_hangs_ends(clipjax, tmp_path, point):
    field, words = POINTS[point]
    done = clipjax.train(
        tmp_path / "run",
        f"--config.start_timeouts.{field}=8",
        "--config.hang_timeout_s=None",
        check=exit_codes.HUNG,
        env={faults.FAULT: f"hang@{point}"},
    )
    assert f"no progress for 8 s in {words}" in done.stderr
    stacks = done.stderr + "".join(p.read_text() for p in tmp_path.rglob("process_0.log"))
    assert "in point" in stacks  # of the thread that hangs
