"""Where metrics go besides the files of the workdir, by config.trackers: one small protocol.

metrics.jsonl is the record; a tracker shows it elsewhere. One that fails is said and left out, and
the run goes on.
"""

import importlib.util
import json
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol

from absl import logging

from clipjax.building import ANY_MODULE, build, check_spec
from clipjax.files import write_file
from clipjax.ranges import Choice, Rule, within

# What a tracker is given besides its fields in the config.
RUNTIME = ("workdir", "config")


class Tracker(Protocol):
    """What shows the metrics of a run; only the lead process has one.

    Its constructor takes the fields of its entry in config.trackers, and `workdir` (a Path) and
    `config` (the whole config as plain data, without credentials) if it has arguments of these
    names.
    """

    def write(self, group: str, step: int, metrics: Mapping[str, float]) -> None:
        """Takes the metrics of a step; a run that goes on from a checkpoint writes steps again.

        Args:
            group: "train" or "eval".
            step: finished optimizer steps.
            metrics: numbers by name; they may be NaN or infinite.
        """

    def close(self) -> None:
        """Ends it; nothing is written afterwards."""


class WeightsAndBiases:
    """A run of Weights & Biases, with `pip install wandb`: the workdir's, however often started.

    Args:
        project: that the run belongs to.
        entity: team or user; None is the default of the account.
        run_name: that people see; None is the workdir's name.
        mode: `online`, `offline` (files in the workdir, for `wandb sync`) or `disabled`.
        tags: of the run.
        notes: of the run.
        workdir: of the run.
        config: shown with it.
    """

    package: ClassVar[str] = "wandb"
    ranges: ClassVar[Mapping[str, Rule]] = {"mode": Choice(("online", "offline", "disabled"))}

    def __init__(
        self,
        *,
        project: str = "clipjax",
        entity: str | None = None,
        run_name: str | None = None,
        mode: str = "online",
        tags: Sequence[str] = (),
        notes: str | None = None,
        workdir: Path,
        config: Mapping[str, Any],
    ) -> None:
        import wandb  # an extra of its own

        self._run = wandb.init(
            project=project,
            entity=entity,
            name=run_name or workdir.absolute().name,
            id=_own_id(workdir),
            resume="allow",
            dir=str(workdir),
            mode=mode,
            tags=list(tags),
            notes=notes,
            config=dict(config),
            settings=wandb.Settings(console="off"),  # the terminal and the logs are the run's
        )
        # Steps as a metric: W&B's own counter may not go back, and a resumed run does.
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def write(self, group: str, step: int, metrics: Mapping[str, float]) -> None:
        """Logs the metrics as `group/name`."""
        self._run.log({"step": step, **{f"{group}/{name}": v for name, v in metrics.items()}})

    def close(self) -> None:
        """Waits until all is written, or sent."""
        self._run.finish()


def _own_id(workdir: Path) -> str:
    """The id of the workdir's run: kept there, so that a run that goes on is the same one."""
    path = workdir / "wandb.json"
    try:
        return str(json.loads(path.read_text(encoding="utf-8"))["id"])
    except (OSError, ValueError, KeyError, TypeError):
        found = uuid.uuid4().hex[:12]
        write_file(path, json.dumps({"id": found}) + "\n")
        return found


TRACKERS: dict[str, Any] = {"wandb": WeightsAndBiases}


def check_trackers(specs: Sequence[Mapping[str, Any]], *, to_run: bool) -> None:
    """Checks config.trackers.

    Raises:
        ValueError: an unknown name or field, or a package that is not installed.
    """
    for number, spec in enumerate(specs):
        path = f"config.trackers[{number}]"
        found = check_spec(spec, TRACKERS, path=path, plugins=ANY_MODULE, runtime=RUNTIME)
        package = getattr(found, "package", None)
        if to_run and package and importlib.util.find_spec(package) is None:
            raise ValueError(
                f"{within(path, 'name')} = {spec['name']!r} needs {package}, which is not "
                f"installed: pip install {package}, or leave the tracker out"
            )


class Trackers:
    """The trackers of a run, as one.

    Args:
        specs: config.trackers.
        workdir: of the run.
        config: of the run, as plain data.
    """

    def __init__(
        self, specs: Sequence[Mapping[str, Any]], workdir: Path, config: Mapping[str, Any]
    ) -> None:
        self._open: dict[str, Tracker] = {}
        for number, spec in enumerate(specs):
            path = f"config.trackers[{number}]"
            try:
                self._open[path] = build(
                    spec,
                    TRACKERS,
                    path=path,
                    plugins=ANY_MODULE,
                    workdir=workdir,
                    config=config,
                )
            except Exception as error:  # a service that does not answer is no reason not to train
                _left_out(path, error)

    def write(self, group: str, step: int, metrics: Mapping[str, float]) -> None:
        """Hands metrics to all of them."""
        for path, tracker in list(self._open.items()):
            try:
                tracker.write(group, step, metrics)
            except Exception as error:
                del self._open[path]
                _left_out(path, error)

    def close(self) -> None:
        """Ends all of them."""
        while self._open:
            path, tracker = self._open.popitem()
            try:
                tracker.close()
            except Exception as error:
                _left_out(path, error)


def _left_out(path: str, error: Exception) -> None:
    logging.warning(
        "%s is left out from here on, the run goes on and metrics.jsonl has all: %s: %s",
        *(path, type(error).__name__, error),
    )
