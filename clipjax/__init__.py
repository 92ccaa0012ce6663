"""clipjax: contrastive language-image pretraining in JAX.

The public names are those of `__all__`; everything else is private and may move. They are imported
when they are first used, so that `import clipjax` costs nothing.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from clipjax.data.loading.make_loader import make_loader
    from clipjax.inference.loading import load
    from clipjax.inference.model import Model
    from clipjax.losses.make_loss import make_loss
    from clipjax.models import list_models
    from clipjax.train_state import create_train_state
    from clipjax.train_step import make_train_step

__version__ = "0.1.0"

_HOMES = {
    "Model": "clipjax.inference.model",
    "create_train_state": "clipjax.train_state",
    "list_models": "clipjax.models",
    "load": "clipjax.inference.loading",
    "make_loader": "clipjax.data.loading.make_loader",
    "make_loss": "clipjax.losses.make_loss",
    "make_train_step": "clipjax.train_step",
}
__all__ = [
    "Model",
    "__version__",
    "create_train_state",
    "list_models",
    "load",
    "make_loader",
    "make_loss",
    "make_train_step",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'clipjax' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
