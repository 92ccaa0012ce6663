"""A package of its own: what is imported as `tests` is no other that stands in site-packages."""
