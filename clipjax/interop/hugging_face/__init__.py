"""Directories as Hugging Face's transformers reads and writes them, of the classes of FAMILIES."""

from clipjax.interop.hugging_face.directory import WEIGHT_FILES, read, recognises, write
