"""Weights of other packages in and out: OpenAI, OpenCLIP, Hugging Face, big_vision."""

from clipjax.interop.leaves import Leaf, Rows, Transform
from clipjax.interop.shapes import expected_shapes
from clipjax.interop.tensors import LazyTensor, WeightFile, WeightFileError
from clipjax.interop.weights import Hints, Weights, convert, export
