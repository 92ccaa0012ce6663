"""Any source into shards, and what stands beside them."""
