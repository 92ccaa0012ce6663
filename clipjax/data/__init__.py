"""Data: sources, transforms, and batches as a pure function of the step."""

from clipjax.data.images.preprocess import ImageError, Preprocess, decode_image
from clipjax.data.loading.bad_examples import TooManyBadExamples
from clipjax.data.loading.loader import Batch, Loader
from clipjax.data.source import DataSource, Example, SampleError, parse_spec, spec_name
from clipjax.data.sources import SOURCES, make_source
from clipjax.data.transforms import TRANSFORMS, make_transforms

__all__ = [
    "Batch",
    "DataSource",
    "Example",
    "ImageError",
    "Loader",
    "Preprocess",
    "SOURCES",
    "SampleError",
    "TRANSFORMS",
    "TooManyBadExamples",
    "decode_image",
    "make_source",
    "make_transforms",
    "parse_spec",
    "spec_name",
]
