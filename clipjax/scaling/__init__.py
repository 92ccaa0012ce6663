"""Scaling laws: what runs tell of longer and larger ones.

evidence.py reads the runs of a sweep or a published ladder (ladders/), law.py fits and resamples,
fitting.py decides which laws the runs can show, expecting.py asks them about a config, telling.py
and page.py show all of it.
"""

from clipjax.scaling.evidence import (
    Evidence,
    Observation,
    ladders,
    read_ladder,
    read_ladder_file,
    read_sweep,
)
from clipjax.scaling.expecting import Expectation, Expected, expect
from clipjax.scaling.fitting import LAION_PARTS, Fit, ScalingLaw, fit_scaling
from clipjax.scaling.law import FittedLaw, Law, fit_law, fit_power, fit_with_floor
from clipjax.scaling.page import scaling_page
from clipjax.scaling.telling import to_json, to_text
