"""Every length of a config in steps: what it is counted in, and by whose batches."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from clipjax.config_fields import FIELDS, HALF_LIFE
from clipjax.lengths import Length, is_in_steps
from clipjax.ranges import FieldError, show


def resolve_lengths(plain: dict[str, Any], count: Callable[[Any, str], int] | None) -> None:
    """Turns every length of a config to steps, in place.

    Args:
        plain: the config, checked field by field.
        count: the examples of a data source, given with its path; None: no source is opened.

    Raises:
        ValueError: a length that its stages, or their sources, do not agree on.
    """
    counted: list[tuple[Any, int]] = []

    def count_one(path: str, source: Any) -> int:
        if not source or count is None:
            raise ValueError(
                f"an epoch is counted in {path}, which is "
                f"{'not opened here' if source else 'empty'}; give the length in examples"
            )
        for known, examples in counted:
            if known == source:
                return examples
        counted.append((source, count(source, path)))
        return counted[-1][1]

    def count_examples(sources: Mapping[str, Any]) -> int:
        found = {path: count_one(path, source) for path, source in sources.items()}
        if len(set(found.values())) > 1:
            raise ValueError(
                f"an epoch is {' and '.join(f'{n:,} examples of {p}' for p, n in found.items())}: "
                "give the length in examples or in steps"
            )
        return next(iter(found.values()))

    def resolve(
        group: dict[str, Any],
        name: str,
        rule: Length,
        path: str,
        batch_sizes: Iterable[int],
        sources: Mapping[str, Any],
        after: tuple[int, int] = (0, 0),
    ) -> None:
        sizes = sorted(set(batch_sizes))
        if len(sizes) > 1 and not is_in_steps(group[name]):
            raise FieldError(
                f"{path} = {show(group[name])} is for stages with batches of "
                f"{' and '.join(map(str, sizes))} examples: give it in steps, or to "
                "each stage by itself"
            )
        group[name] = rule.steps(
            group[name],
            path,
            batch_size=sizes[0],
            count_examples=lambda: count_examples(sources),
            after=after,
        )

    rules = {
        path.removeprefix("schedule."): field.allowed
        for path, field in FIELDS.items()
        if path.startswith("schedule.") and isinstance(field.allowed, Length)
    }
    own = (plain["batch_size"], {"config.data.source": plain["data"]["source"]})
    stages: list[tuple[int, dict[str, Any]]] = []  # sizes of batches, and sources by their path
    inheriting: dict[str, list[tuple[int, dict[str, Any]]]] = {key: [] for key in rules}
    done = (0, 0)  # steps, and their examples
    for number, stage in enumerate(plain["stages"]):
        path = f"config.stages[{number}]"
        size, sources = stage.get("batch_size", own[0]), own[1]
        if "source" in stage.get("data", {}):
            sources = {f"{path}.data.source": stage["data"]["source"]}
        stages.append((size, sources))
        # Counted from the run's beginning, so in the sources of the stages before, too.
        resolve(stage, "until_step", Length(1), f"{path}.until_step", [size], _all(stages), done)
        done = stage["until_step"], done[1] + (stage["until_step"] - done[0]) * size
        for key, rule in rules.items():
            if key in (schedule := stage.get("schedule", {})):
                resolve(schedule, key, rule, f"{path}.schedule.{key}", [size], sources)
            else:
                inheriting[key].append((size, sources))
    every = [*stages, own]
    resolve(plain, "total_steps", Length(1), "config.total_steps", [own[0]], _all(every), done)
    if stages and plain["total_steps"] == done[0]:  # no step is left to the config's own values
        every = stages
    else:
        for users in inheriting.values():
            users.append(own)
    for key, rule in rules.items():
        users = inheriting[key] or [own]
        sizes = [size for size, _ in users]
        resolve(plain["schedule"], key, rule, f"config.schedule.{key}", sizes, _all(users))
    for number, average in enumerate(plain["optimizer"]["averages"]):
        if "half_life" in average:
            path, sizes = f"config.optimizer.averages[{number}].half_life", [s for s, _ in every]
            resolve(average, "half_life", HALF_LIFE, path, sizes, _all(every))


def _all(stages: Iterable[tuple[int, Mapping[str, Any]]]) -> dict[str, Any]:
    """The sources of all stages, by their path."""
    return {path: source for _, sources in stages for path, source in sources.items()}
