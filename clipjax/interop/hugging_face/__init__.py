"""Directories as Hugging Face's transformers reads and writes them: CLIP, SigLIP 1 and 2, ALIGN."""

from clipjax.interop.hugging_face.directory import read, recognises, write

__all__ = ["read", "recognises", "write"]
