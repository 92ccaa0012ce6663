"""One config trained over a grid of its fields: runs one after another, and what came of them.

grid.py reads the grid and names the runs, running.py tells which are done and runs the others,
table.py and page.py show them.
"""

from clipjax.sweep.grid import Axis, Point, parse_axis, points
from clipjax.sweep.page import sweep_page
from clipjax.sweep.running import FAILED, FINISHED, Outcome, Run, outcome_of, run_all
from clipjax.sweep.table import metrics_shown, ranked, to_json, to_text
