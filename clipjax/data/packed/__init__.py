"""Packed data as it stands on disk: ArrayRecord files, and the manifest of a folder."""
