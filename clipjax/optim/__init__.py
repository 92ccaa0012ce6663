"""Optimizers: decay masks, schedules, the chain, and the report of who gets what."""

from clipjax.optim.factory import make_optimizer, make_stage_optimizers, optimizer_report
from clipjax.optim.held_rows import hold_rows, zero_rows
from clipjax.optim.masks import DECAY_MASKS, matcher
from clipjax.optim.schedules import make_schedule
