"""A model and an index behind a page and an HTTP API."""
