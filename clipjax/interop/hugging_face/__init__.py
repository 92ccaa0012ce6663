"""Directories as Hugging Face's transformers reads and writes them: CLIP, SigLIP 1 and 2, ALIGN."""

from clipjax.interop.hugging_face.directory import WEIGHT_FILES, read, recognises, write
