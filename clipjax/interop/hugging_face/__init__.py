"""Directories as Hugging Face's transformers reads and writes them: CLIP, SigLIP, ALIGN."""

from clipjax.interop.hugging_face.directory import read, recognises, write

__all__ = ["read", "recognises", "write"]
