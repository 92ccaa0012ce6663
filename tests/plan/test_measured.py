"""What plans say of their checks against a card is what stands in the record."""

import re
from pathlib import Path

from clipjax.plan.measured import CHECKS, FILE, STEPS, WHEN

HEADING = (
    "step", "compiled by", "memory planned", "measured", "HBM traffic", "bound at 3.35 TB/s",
    "measured", "measured / bound",
)  # fmt: skip
TEXT = (Path(__file__).parents[2] / FILE).read_text(encoding="utf-8")


def cells(line):
    return tuple(cell.strip() for cell in line.strip()[1:-1].split("|"))


def test_the_checks_are_the_rows_of_the_record():
    heading, _, *rows = [cells(line) for line in TEXT.splitlines() if line.startswith("|")]
    assert heading == HEADING
    found = {row[:2]: row[2:] for row in rows}
    for check in CHECKS:
        planned, measured = check.planned_bytes / 1e9, check.measured_bytes / 1e9
        off = 100 * (planned / measured - 1)
        memory, of_device, _, bound, taken, factor = found[check.setting, check.compiled_by]
        assert memory == f"{planned:.2f} GB ({off:+.1f} %)"
        assert of_device == f"{measured:.1f} GB"
        assert bound == f"{check.bound_s * 1e3:.0f} ms"
        batch = int(re.search(r"batch ([\d,]+)", check.setting)[1].replace(",", ""))
        rate = f"{batch / check.measured_s:,.0f} images/s"
        assert taken == f"{check.measured_s * 1e3:.0f} ms ({rate})"
        assert factor == f"{check.time_factor:.2f}"
    # Every step that was run is among them; the rows that say "the first" compile one again.
    assert {check.setting for check in CHECKS} == {
        step for step, _ in found if not step.startswith("the ")
    }


def test_the_checks_name_the_steps_as_the_record_does():
    date, version, cuda = WHEN.split(", ")
    tree, layers, attention = STEPS.split(", ")
    assert date in TEXT and f"{version} with {cuda}" in TEXT
    assert tree.removeprefix("steps of ") in TEXT
    assert attention == "attention by XLA" and "Attention by XLA" in TEXT
    assert layers == "layers scanned" and all(c.setting.endswith("scanned") for c in CHECKS)


def test_plans_were_near_the_memory_and_below_the_time():
    """As docs/plan.md says it: to 1 %; to 2 % with fewer choices of the compiler."""
    for check in CHECKS:
        allowed = 0.02 if "off" in check.compiled_by else 0.01
        assert abs(check.planned_bytes / check.measured_bytes - 1) < allowed
        assert 1.3 < check.time_factor < 1.8
