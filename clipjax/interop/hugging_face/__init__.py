"""Directories as Hugging Face's transformers reads and writes them: CLIP, SigLIP, ALIGN."""
