"""What an evaluation is called: kind, dataset and language, from which metrics are named."""

import dataclasses
import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from clipjax.data.source import spec_name, split_options
from clipjax.files import sha256
from clipjax.redaction import redact, redact_tree


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvalName:
    """Which evaluation a number is of.

    Attributes:
        kind: of EVALS, or module:Name.
        dataset: as metrics name it, without the language.
        languages: that of the SPEC, by its option `language`; several for their mean; or none.
        spec: the SPEC; that of the first language for a mean.
    """

    kind: str
    dataset: str
    languages: tuple[str, ...] = ()
    spec: str = ""

    @property
    def is_mean(self) -> bool:
        """Whether it is the mean over languages."""
        return len(self.languages) > 1

    @property
    def prefix(self) -> str:
        """`<kind>/<dataset>`, in front of the metrics."""
        if not self.languages:
            return f"{self.kind}/{self.dataset}"
        language = "mean" if self.is_mean else spec_name(self.languages[0])
        return f"{self.kind}/{self.dataset}_language_{language}"


def name_evals(asked: Sequence[tuple[str, str | Mapping[str, Any]]]) -> tuple[EvalName, ...]:
    """Names evaluations so that no two write the same metrics.

    Datasets whose SPECs differ only in characters that names do not have, as `folder:x/a` and
    `folder:x_a`, are told apart by the first digits of the SPEC's SHA-256.
    """
    named = [_name(kind, source) for kind, source in asked]
    datasets = defaultdict(set)
    for name, identity in named:
        datasets[name.kind, name.dataset].add(identity)
    names = tuple(
        dataclasses.replace(name, dataset=f"{name.dataset}_{sha256(identity)[:6]}")
        if len(datasets[name.kind, name.dataset]) > 1
        else name
        for name, identity in named
    )
    for prefix, count in Counter(name.prefix for name in names).items():
        if count > 1:
            specs = sorted({name.spec for name in names if name.prefix == prefix})
            raise ValueError(
                f"{count} evaluations write {prefix!r}, of {' and '.join(specs)}; keep one of them"
            )
    return names


def _name(kind: str, source: str | Mapping[str, Any]) -> tuple[EvalName, str]:
    """The name of one alone, and what tells its dataset from others, in whatever language."""
    # A credential is no part of a name: it goes into files, and a new one makes no new dataset.
    options = {} if isinstance(source, str) else dict(redact_tree(source))
    spec = (
        redact(source)
        if isinstance(source, str)
        else options.pop("spec", None) or options.pop("name")
    )
    if "examples" in options:  # a number over a part says so
        spec += f"{'&' if '?' in spec else '?'}examples={options.pop('examples')}"
    bare, written = (spec, {}) if spec.startswith("mix:") else split_options(spec)
    options |= written
    language = options.pop("language", None)
    if not isinstance(language, str) or language == "all":
        options |= {} if language is None else {"language": language}
        name = EvalName(kind=kind, dataset=spec_name(spec), spec=spec)
    else:
        parts = spec[len(bare) + 1 :].split("&")
        kept = "&".join(part for part in parts if not part.startswith("language="))
        if "language" not in written:  # of a mapping
            spec += f"{'&' if written else '?'}language={language}"
        name = EvalName(
            kind=kind,
            dataset=spec_name(f"{bare}?{kept}"),
            languages=(language,),
            spec=spec,
        )
    return name, json.dumps([bare, options], sort_keys=True, default=str)
