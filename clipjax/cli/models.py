"""`clipjax models [--json]`."""

import json

from absl import flags

from clipjax.cli.main import no_positional
from clipjax.cli.output import show, show_page

_JSON = flags.DEFINE_bool("json", False, "Print JSON: name -> parameters and spec.")


def main(argv: list[str]) -> int:
    """Prints the table of named models."""
    no_positional(argv)
    from clipjax.models import MODELS, count_model_parameters

    rows = {name: count_model_parameters(spec) for name, spec in MODELS.items()}
    if _JSON.value:
        table = {name: {"parameters": rows[name], **MODELS[name]} for name in rows}
        show_page(json.dumps(table, indent=2))
        return 0
    show(f"{'model':<28}{'pixels':>7}{'embed':>7}{'image':>15}{'text':>15}{'total':>15}")
    for name, counts in rows.items():
        spec = MODELS[name]
        numbers = "".join(f"{counts[part]:>15,}" for part in ("image", "text", "total"))
        show(f"{name:<28}{spec['image_size']:>7}{spec['embed_dim']:>7}{numbers}")
    return 0
