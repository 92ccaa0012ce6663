"""One plan of a small step, compiled for the devices at hand, that several files read."""

import jax
import pytest
from small_plan import small_config

from clipjax.experiment import resolve
from clipjax.plan import Topology, make_plan
from clipjax.plan.chips import CHIPS


@pytest.fixture(scope="session")
def topology():
    devices = tuple(jax.devices())
    return Topology("v5e:2x4", CHIPS["v5e"], len(devices), devices, num_hosts=2)


@pytest.fixture(scope="session")
def plan(topology):
    return make_plan(resolve(small_config()), topology)
