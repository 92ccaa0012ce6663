"""Before a pod is rented: compile the very train step for it, and say what that tells.

`make_plan` (planner.py) compiles the step with libtpu or XLA's GPU compiler for a topology that is
not there (compiling.py, topology.py, gpu.py; chips.py has the figures), reads the compiled program
(hlo.py: what runs how often; flops.py, traffic.py, collectives.py: what that costs) and sets it
against the model's needs (model_flops.py, formulas.py) and the chip's peaks (roofline.py, which
adds the cost of the whole run). mfu.py sets a run's rate against the same figures. measured.py
holds plans against runs on a device. advice.py, search.py and variations.py look for settings that
fit; report.py writes the page, which
docs/plan.md explains.
"""

from clipjax.plan.chips import CHIPS
from clipjax.plan.planner import Plan, make_plan
from clipjax.plan.report import to_json, to_text
from clipjax.plan.roofline import Assumptions
from clipjax.plan.search import (
    best_setting,
    largest_batch,
    largest_batch_to_text,
    search_settings,
    search_to_json,
    settings_to_text,
    with_setting,
)
from clipjax.plan.topology import Topology, make_topology
from clipjax.plan.variations import search_variations, variations_to_json, variations_to_text

__all__ = [
    "CHIPS",
    "Assumptions",
    "Plan",
    "Topology",
    "best_setting",
    "largest_batch",
    "largest_batch_to_text",
    "make_plan",
    "make_topology",
    "search_settings",
    "search_to_json",
    "search_variations",
    "settings_to_text",
    "to_json",
    "to_text",
    "variations_to_json",
    "variations_to_text",
    "with_setting",
]
