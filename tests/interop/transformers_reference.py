"""transformers and diffusers, importable beside a torchvision that is not of torch's build."""

import warnings

import torch
import torchvision_operators  # noqa: F401  # before transformers, which imports torchvision

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of their own imports
    import diffusers
    import transformers

transformers.logging.set_verbosity_error()
diffusers.logging.set_verbosity_error()

__all__ = ["diffusers", "load", "torch", "transformers"]


def load(class_name, path):
    """`from_pretrained`, after checking that no key is missing and none has another shape."""
    model, info = getattr(transformers, class_name).from_pretrained(path, output_loading_info=True)
    assert not info["missing_keys"] and not info["mismatched_keys"] and not info["error_msgs"]
    return model.eval(), info["unexpected_keys"]
