"""Before a run, on the machines that are to run it: what would stop it, or slow it down.

`examine` (examining.py) goes through the checks in every process of the run and gathers what they
found (findings.py has the page). machine.py looks at devices, versions and limits of the operating
system, store.py at the workdir and its disk, hosts.py at what the processes have to agree on, and
data_rate.py holds what the data gives against what the devices take, by the figures of
`clipjax.plan`.
"""

from clipjax.doctor.data_rate import Demand
from clipjax.doctor.examining import examine
from clipjax.doctor.findings import Finding, is_well, to_json, to_text
