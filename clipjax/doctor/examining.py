"""The checks in their order; what all processes do together stands between them."""

import tempfile
from pathlib import Path

import jax
from absl import logging

from clipjax.doctor import data_rate, hosts, machine, store
from clipjax.doctor.data_rate import Demand
from clipjax.doctor.findings import BAD, OK, Finding, checked
from clipjax.experiment import Experiment, Resolved, build_experiment
from clipjax.processes import distributed
from clipjax.processes.watchdog import Watchdog
from clipjax.trees import count_bytes, count_parameters

_SUM_S = 300.0  # that the first collective over all devices may take


def examine(
    resolved: Resolved | None,
    workdir: Path | None,
    *,
    demand: Demand,
    seconds: float,
) -> list[list[Finding]]:
    """Examines the machine of every process of the run; a collective.

    Args:
        resolved: of the config; None leaves out what it says.
        workdir: of the run; None leaves out its store.
        demand: what the devices take.
        seconds: of each of the two measurements of the data.

    Returns:
        What each process found, in the order of the processes; the same in all of them.
    """
    findings = [checked("devices", machine.devices, "repair the driver, or leave this host out")]
    findings.append(checked("versions", machine.versions))
    if all(distributed.gather(findings[0].state != BAD)) and jax.device_count() > 1:
        with Watchdog(_SUM_S, "the sum over all devices"):
            findings.append(checked("network", machine.sum_over_devices))
    workers = resolved.settings.data.num_workers if resolved else 0
    findings.append(machine.file_handles(workers))
    here = hosts.processes_here()
    findings.append(machine.shared_memory(here, jax.local_devices()[0].platform))
    findings.append(hosts.clock())
    if workdir is not None:
        findings.append(store.store(workdir))
        if jax.process_count() > 1 and (found := hosts.shared_workdir(workdir)) is not None:
            findings.append(found)
    told = dict(machine.facts()) | {"code of clipjax": hosts.code_sha256()}
    experiment = None
    if resolved is not None:
        experiment, opened = _open(resolved, workdir)
        findings.append(opened)
        told["config"] = resolved.config_sha256
    if experiment is not None:
        told["data"] = experiment.metadata["dataset_fingerprint"]
    findings.append(hosts.agreement(distributed.gather(told)))
    if workdir is not None:
        findings.append(checked("disk", lambda: _disk(experiment, workdir)))
    distributed.gather(None)  # the hosts' processes are measured side by side, as they will run
    if experiment is not None:
        findings.append(_data(experiment, demand, seconds))
    gathered = distributed.gather([list(finding) for finding in findings])
    return [[Finding(*finding) for finding in each] for each in gathered]


def _open(resolved: Resolved, workdir: Path | None) -> tuple[Experiment | None, Finding]:
    """Opens data, evaluations and checkpoints, and builds the step, as the run will."""
    found: list[Experiment] = []

    def build() -> Finding:
        experiment = build_experiment(resolved, workdir or Path(tempfile.gettempdir()))
        found.append(experiment)
        program = experiment.program
        parameters = count_parameters(program.abstract_state.params)
        return Finding(
            "config",
            OK,
            f"{program.spec['name']}, {parameters:,} parameters, mesh {dict(program.mesh.shape)}, "
            f"batch {resolved.settings.batch_size:,} of {len(experiment.loader.source):,} "
            f"examples; {program.execution.summary}",
        )

    logging.info("opening the data, the evaluations and the checkpoints of the config")
    finding = checked("config", build)
    return (found[0] if found else None), finding


def _disk(experiment: Experiment | None, workdir: Path) -> Finding:
    if experiment is None:
        return store.free_space(workdir)
    state_bytes = count_bytes(experiment.program.abstract_state)
    return store.disk(workdir, experiment.settings, state_bytes)


def _data(experiment: Experiment, demand: Demand, seconds: float) -> Finding:
    settings = experiment.settings

    def measured() -> Finding:
        logging.info("measuring the data, about %.0f s", 2 * seconds)
        rates = data_rate.measure(experiment.loader, settings, seconds)
        wanted, how = data_rate.demanded(experiment.program, demand)
        return data_rate.judge(rates, wanted, how, settings.data.num_workers)

    try:
        return checked("data", measured, "`clipjax data check SPEC` finds what is wrong with it")
    finally:
        experiment.loader.close()
