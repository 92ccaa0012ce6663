"""What the stages of a run change of its config: config.stages, an element each.

A stage is the config with some of its fields changed, for the steps below its `until_step`; after
the last of them come the config's own values, up to config.total_steps.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from clipjax.config_fields import FIELDS, Settings
from clipjax.lengths import Length
from clipjax.ranges import IMAGE_SIZE, RATE, FieldError, Group, Rule, unknown_key, whole

# Of the model, for the steps of a stage.
SIZES: dict[str, Rule] = {
    "image_size": IMAGE_SIZE,
    "context_length": whole(),
    "patch_dropout": RATE,
}
_RATES = {"optimizer.learning_rate", *(path for path in FIELDS if path.startswith("schedule."))}
# Fields of the config that a stage may change.
CHANGES = {
    "batch_size",
    "micro_batch_size",
    "data.source",
    "data.transforms",
    "optimizer.freeze",
    "objective",
    *(path for path in FIELDS if path.startswith("loss.")),
    *_RATES,
}
RULES: dict[str, Rule] = {
    "until_step": Length(1),
    **SIZES,
    **{path: field.allowed for path, field in FIELDS.items() if path in CHANGES},
}


class StageConfig(NamedTuple):
    """A stage as the config has it.

    Attributes:
        path: where it stands, for messages; `config` for the config's own values.
        from_step: the first step of it.
        until_step: the first step after it.
        sizes: of SIZES, as written.
        changes: dotted names of the config's fields that it changes.
        settings: the config with its changes.
    """

    path: str
    from_step: int
    until_step: int
    sizes: Mapping[str, Any]
    changes: frozenset[str]
    settings: Settings

    @property
    def has_schedule(self) -> bool:
        """Whether it names its learning rate or a field of its schedule."""
        return not self.changes.isdisjoint(_RATES)

    def where(self, name: str) -> str:
        """Where the value of a field stands, for messages."""
        return f"{self.path}.{name}" if name in self.changes else f"config.{name}"


def check_stages(stages: Sequence[Mapping[str, Any]]) -> None:
    """Checks names and values of every stage.

    Raises:
        ValueError: names the stage and its field, what was found and what is allowed.
    """
    for number, fields in enumerate(stages):
        path = f"config.stages[{number}]"
        _check(fields, path, "")
        if "until_step" not in fields:
            raise FieldError(f"{path}.until_step is missing: give {RULES['until_step']}")


def _check(fields: Mapping[str, Any], path: str, prefix: str) -> None:
    known = [name.removeprefix(prefix) for name in RULES if name.startswith(prefix)]
    for name, value in fields.items():
        if name in known:
            RULES[prefix + name].check(value, f"{path}.{name}")
        elif any(other.startswith(f"{name}.") for other in known):
            Group("of fields, as the config's").check(value, f"{path}.{name}")
            _check(value, f"{path}.{name}", f"{prefix}{name}.")
        else:
            raise FieldError(
                unknown_key(f"{path}.{name}", dict.fromkeys(k.split(".")[0] for k in known))
            )


def stage_configs(settings: Settings) -> tuple[StageConfig, ...]:
    """The stages of a config in their order; the last one is the config itself.

    Raises:
        ValueError: they do not end one after the other.
    """
    found: list[StageConfig] = []
    begin = 0
    for number, fields in enumerate(settings.stages):
        path, until = f"config.stages[{number}]", fields["until_step"]
        if not begin < until <= settings.total_steps:
            raise FieldError(
                f"{path}.until_step = {until}: stages end one after the other, so above {begin}, "
                f"and not after config.total_steps = {settings.total_steps}"
            )
        sizes = {name: value for name, value in fields.items() if name in SIZES}
        changes = {k: v for k, v in fields.items() if k not in sizes and k != "until_step"}
        names = frozenset(_names(changes))
        found.append(StageConfig(path, begin, until, sizes, names, _changed(settings, changes)))
        begin = until
    own = StageConfig("config", begin, settings.total_steps, {}, frozenset(), settings)
    return (*found, own)


def schedule_spans(stages: Sequence[StageConfig]) -> list[list[StageConfig]]:
    """Cuts stages that have steps into rows of one schedule each, which begins with the row.

    A stage that names its learning rate or a field of its schedule is a row; stages that follow one
    another and name neither are one, of the config's.

    Args:
        stages: in their order.
    """
    spans: list[list[StageConfig]] = []
    for stage in stages:
        if stage.from_step == stage.until_step:
            continue
        goes_on = spans and not stage.has_schedule and not spans[-1][-1].has_schedule
        if goes_on:
            spans[-1].append(stage)
        else:
            spans.append([stage])
    return spans


def _names(fields: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Dotted names of the config's fields in nested changes."""
    names: list[str] = []
    for name, value in fields.items():
        path = f"{prefix}{name}"
        names += [path] if path in FIELDS else _names(value, f"{path}.")
    return names


def _changed(group: Any, changes: Mapping[str, Any]) -> Any:
    """A group of settings with other values of some fields."""
    values = {}
    for name, value in changes.items():
        old = getattr(group, name)
        if dataclasses.is_dataclass(old):
            value = _changed(old, value)
        values[name] = tuple(value) if isinstance(value, list) else value
    return dataclasses.replace(group, **values)
