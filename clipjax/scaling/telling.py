"""Fitted laws as lines of text and as plain data."""

import dataclasses
from collections.abc import Iterator
from typing import Any

from clipjax.scaling.expecting import Expectation, Expected
from clipjax.scaling.fitting import SYMBOLS, Fit, ScalingLaw


def reached(fit: Fit, error: float) -> str:
    """What an error means in the metric: its accuracy in percent, or its loss."""
    return f"{100 * (1 - error):.1f} %" if fit.evidence.is_share else f"{error:.4g}"


def formula(law: ScalingLaw) -> str:
    """The law, as E = 0.12 + 5.8 C^-0.111."""
    found = law.fitted.law
    floor = f"{found.floor:.3g} + " if found.floor else ""
    powers = " ".join(
        f"{SYMBOLS[quantity.name]}^{exponent:.3f}"
        for quantity, exponent in zip(law.quantities, found.exponents, strict=True)
    )
    return f"E = {floor}{found.coefficient:.3g} {powers}"


def notes(fit: Fit, law: ScalingLaw) -> list[str]:
    """What there is to know of a law: its intervals, its floor, how far its runs are from it."""
    fitted, found = law.fitted, []
    for number, quantity in enumerate(law.quantities):
        low, high = fitted.exponent_interval(number, fit.level)
        trend = ", no trend that these runs could show" if low <= 0 <= high else ""
        found.append(f"exponent of {SYMBOLS[quantity.name]} {low:.3f} to {high:.3f}{trend}")
    if fitted.law.floor:
        low, high = fitted.floor_interval(fit.level)
        found.append(f"irreducible error {fitted.law.floor:.3g}, {low:.3g} to {high:.3g}")
    else:
        found.append("the runs show no irreducible error")
    found.append(f"its {len(law.names)} runs are {100 * fitted.spread:.2g} % from it (rms)")
    return found


def verdict(fit: Fit, expected: Expected) -> str:
    """What a law expects of a config."""
    if not expected.is_possible:
        return f"nothing: the law gives an error of {expected.error:.3g}, above 1, out there"
    low, high = sorted((expected.low, expected.high), reverse=fit.evidence.is_share)
    text = f"{reached(fit, expected.error)} ({reached(fit, low)} to {reached(fit, high)})"
    return f"{text}; EXTRAPOLATED: {expected.outside}" if expected.outside else text


def _how(fit: Fit) -> str:
    return (
        f"{100 * fit.level:g} % intervals from {fit.num_resamples:,} resamples of the runs "
        f"(seed {fit.seed}); that of a config has a run's own distance from the law in it"
    )


def to_text(fit: Fit, expectation: Expectation | None = None) -> str:
    """The page of text."""
    return "\n".join([*_laws(fit), *(_expectation(fit, expectation) if expectation else ())])


def _laws(fit: Fit) -> Iterator[str]:
    evidence = fit.evidence
    meaning = f"1 - {evidence.metric}" if evidence.is_share else evidence.metric
    yield f"Fitted on {evidence.about}"
    yield f"  {evidence.source}"
    for reason, names in evidence.left_out.items():
        shown = ", ".join([*names[:5], *(["..."] if len(names) > 5 else [])])
        yield f"  left out, {reason}: {len(names)} ({shown})"
    yield (
        f"E = {meaning}; S = pairs seen, G = GMAC of a pair's forward pass through both towers, "
        "C = S G"
    )
    for law in fit.laws:
        yield ""
        yield f"{law.title}: {formula(law)}"
        ranges = (f"{SYMBOLS[q.name]} {q.low:.3g} to {q.high:.3g}" for q in law.quantities)
        yield f"  of {', '.join(ranges)}"
        yield from (f"  {note}" for note in notes(fit, law))
    for title, why in fit.missing.items():
        yield ""
        yield f"{title}: no law, {why}"
    yield ""
    yield _how(fit)


def _expectation(fit: Fit, found: Expectation) -> Iterator[str]:
    yield ""
    yield (
        f"{found.name}: {found.samples:,} pairs x {found.gmac:.3g} GMAC = "
        f"{found.samples * found.gmac:.3g} GMAC"
    )
    width = max(len(each.law.title) for each in found.expected)
    for each in found.expected:
        yield f"  {fit.evidence.metric} by {each.law.title:<{width}}  {verdict(fit, each)}"
    yield "  for the recipe and the data of the runs that were fitted, and no others"
    if found.cost is not None:
        yield f"  {cost_text(found.cost)}"


def cost_text(cost: dict[str, Any]) -> str:
    """The cost of a run in words."""
    usd = "" if cost["cost_usd"] is None else f", {cost['cost_usd']:,.0f} USD"
    return (
        f"{cost['chip_hours']:,.3g} chip-hours, {cost['days']:.3g} days on {cost['topology']}"
        f"{usd}, at an ASSUMED MFU of {100 * cost['mfu']:g} % (`clipjax plan` says what its step "
        "allows)"
    )


def to_json(fit: Fit, expectation: Expectation | None = None) -> dict[str, Any]:
    """The same as plain data; errors, not accuracies."""
    evidence = fit.evidence
    return {
        "about": evidence.about,
        "source": evidence.source,
        "metric": evidence.metric,
        "error": f"1 - {evidence.metric}" if evidence.is_share else evidence.metric,
        "level": fit.level,
        "num_resamples": fit.num_resamples,
        "seed": fit.seed,
        "runs": [dataclasses.asdict(observation) for observation in evidence.observations],
        "left_out": {reason: list(names) for reason, names in evidence.left_out.items()},
        "laws": [_law(fit, law) for law in fit.laws],
        "missing": dict(fit.missing),
        "expectation": expectation and _expected(expectation),
    }


def _law(fit: Fit, law: ScalingLaw) -> dict[str, Any]:
    fitted = law.fitted
    return {
        "title": law.title,
        "group": law.group,
        "coefficient": fitted.law.coefficient,
        "floor": fitted.law.floor,
        "floor_interval": fitted.floor_interval(fit.level) if fitted.law.floor else None,
        "exponents": {
            quantity.name: {
                "value": fitted.law.exponents[number],
                "interval": fitted.exponent_interval(number, fit.level),
                "fitted_from": quantity.low,
                "fitted_to": quantity.high,
            }
            for number, quantity in enumerate(law.quantities)
        },
        "rms": fitted.spread,
        "fitted_on": list(law.names),
    }


def _expected(found: Expectation) -> dict[str, Any]:
    return {
        "config": found.name,
        "samples": found.samples,
        "gmac": found.gmac,
        "by_law": {
            each.law.title: {
                "error": each.error,
                "interval": [each.low, each.high],
                "outside": each.outside,
                "is_possible": each.is_possible,
            }
            for each in found.expected
        },
        "cost": found.cost,
    }
