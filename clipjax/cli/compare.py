"""`clipjax compare A B --zero_shot SPEC [--page FILE.html] [--json FILE]`.

Two checkpoints on one dataset: top-1 of each, the difference with the interval of a paired
bootstrap, and the classes that make it.
"""

import json

from absl import flags

from clipjax import compile_cache
from clipjax.cli import hints, joining
from clipjax.cli.main import given
from clipjax.cli.output import show
from clipjax.printable import printable
from clipjax.processes import distributed

_ZERO_SHOT = flags.DEFINE_string("zero_shot", None, "The dataset, with labels: kind:where[:split].")
_TEMPLATES = flags.DEFINE_string(
    "templates", None, "Prompt templates, as for `eval`; by default the dataset's, else each run's."
)
_CLASS_NAMES = flags.DEFINE_string("class_names", None, "Class names: a name or a file.")
_PREPROCESS = flags.DEFINE_enum("preprocess", "clipjax", ["clipjax", "open_clip"], "Whose pixels.")
_MAX_BAD = flags.DEFINE_integer(
    "max_bad", 0, "Images that may fail to decode; they are left out.", lower_bound=0
)
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 256, "Images over all devices.", lower_bound=1)
_RESAMPLES = flags.DEFINE_integer("resamples", 10_000, "Of the paired bootstrap.", lower_bound=100)
_SEED = flags.DEFINE_integer("seed", 0, "Of the paired bootstrap.", lower_bound=0)
_PAGE = flags.DEFINE_string("page", None, "Also write a page, FILE.html.")
_JSON = flags.DEFINE_string("json", None, "Also write the results to this file.")
flags.adopt_module_key_flags(hints)
flags.adopt_module_key_flags(joining)


def main(argv: list[str]) -> int:
    """Compares, and prints the difference and the classes that differ most."""
    paths = argv[1:]
    if len(paths) != 2:
        raise ValueError(f"{len(paths)} checkpoints are given, {paths}: give two, A and B")
    spec = given(_ZERO_SHOT.value, "--zero_shot SPEC")
    joining.join()
    from clipjax.compare import compare_checkpoints, comparison_page
    from clipjax.data.storage.cache import cache_dir
    from clipjax.data.storage.files import write
    from clipjax.data.storage.paths import data_path
    from clipjax.evals.record_lines import check_output
    from clipjax.interop import Hints

    compile_cache.use(cache_dir() / "compiled")
    check_output(_PAGE.value, "--page")
    check_output(_JSON.value, "--json")
    naming = {"templates": _TEMPLATES.value, "class_names": _CLASS_NAMES.value}
    found = compare_checkpoints(
        paths,
        spec,
        fields={**{k: v for k, v in naming.items() if v}, "max_bad": _MAX_BAD.value},
        hints=Hints(**hints.hints()),
        preprocess=_PREPROCESS.value,
        batch_size=_BATCH_SIZE.value,
        num_resamples=_RESAMPLES.value,
        seed=_SEED.value,
    )
    if not distributed.is_lead():
        return 0
    if _PAGE.value:
        write(data_path(_PAGE.value), comparison_page(found).encode("utf-8"))
    if _JSON.value:
        text = json.dumps(found, indent=2, sort_keys=True) + "\n"
        write(data_path(_JSON.value), text.encode("utf-8"))
    difference = found["difference"]
    show(f"A  {difference['a']:.4f}  {paths[0]}")
    show(f"B  {difference['b']:.4f}  {paths[1]}")
    show(
        f"B - A  {difference['difference']:+.4f}, {difference['low']:+.4f} to "
        f"{difference['high']:+.4f} (paired bootstrap, 95 %, n = {difference['count']:,}, "
        f"{difference['num_resamples']:,} resamples, seed {difference['seed']})"
    )
    classes = found["per_class"]
    for one in [*classes[:5], *classes[5:][-5:]]:
        change = (one["b"] - one["a"]) / one["examples"]
        show(f"  {change:+.3f}  {printable(one['name'])} ({one['examples']:,} pictures)")
    return 0
