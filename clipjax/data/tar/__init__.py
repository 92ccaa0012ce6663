"""Tar shards: read strictly, by an index beside them."""
