"""What a check found, and the page of all of them."""

import textwrap
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

OK, NOTE, BAD = "ok", "note", "BAD"
_WIDTH = 100
_LINES = 4  # at most, of processes that a check failed in


class Finding(NamedTuple):
    """What one check found in one process.

    Attributes:
        name: of the check.
        state: OK; NOTE where it cannot be told, or is worth a look; BAD where the run would fail or
            starve.
        found: a sentence.
        remedy: what to do, where it is BAD.
    """

    name: str
    state: str
    found: str
    remedy: str = ""


def checked(name: str, check: Callable[[], Finding], remedy: str = "") -> Finding:
    """Runs a check; where it raises what a user can mend, that is what was found."""
    try:
        return check()
    except (ValueError, OSError, RuntimeError) as error:
        text = str(error).strip() or type(error).__name__
        return Finding(name, BAD, text, remedy or "see the message")


def is_well(told: Sequence[Sequence[Finding]]) -> bool:
    """Whether no check failed in any process."""
    return all(finding.state != BAD for findings in told for finding in findings)


def to_text(told: Sequence[Sequence[Finding]]) -> str:
    """The page: of each check what was found, and what to do.

    Args:
        told: the findings of every process, in their order.
    """
    names = list(dict.fromkeys(finding.name for findings in told for finding in findings))
    lines = []
    for name in names:
        found = [(n, f) for n, findings in enumerate(told) for f in findings if f.name == name]
        lines += _lines(found, len(told))
    bad = [
        name for name in names if any(f.state == BAD for fs in told for f in fs if f.name == name)
    ]
    summary = (
        f"{len(bad)} of {len(names)} checks failed: {', '.join(bad)}" if bad else "all is well"
    )
    return "\n".join([*lines, "", summary])


def _lines(found: Sequence[tuple[int, Finding]], num_processes: int) -> list[str]:
    """Those that failed, each; of the others the first speaks for all."""
    failed = [(n, f) for n, f in found if f.state == BAD]
    shown = failed[:_LINES] or [max(found, key=lambda pair: (pair[1].state == NOTE, -pair[0]))]
    of_all = len({f for _, f in found}) == 1  # they found the same
    lines = []
    for number, finding in shown[:1] if of_all else shown:
        who = "" if of_all or num_processes == 1 else f"process {number}: "
        lines += _wrapped(f"{finding.state:<5} {finding.name:<10}", f"{who}{finding.found}")
        if finding.remedy:
            lines += _wrapped(f"{'':<16}-> ", finding.remedy)
    if not of_all and len(failed) > _LINES:
        lines.append(f"{'':<16}and in {len(failed) - _LINES} more processes")
    return lines


def _wrapped(first: str, text: str) -> list[str]:
    return textwrap.wrap(
        text,
        _WIDTH,
        initial_indent=first,
        subsequent_indent=" " * 16,
        break_long_words=False,
        break_on_hyphens=False,
    )


def to_json(told: Sequence[Sequence[Finding]]) -> dict[str, Any]:
    """The same as plain data."""
    return {"ok": is_well(told), "processes": [[f._asdict() for f in fs] for fs in told]}
