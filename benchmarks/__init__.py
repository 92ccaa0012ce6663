"""Benchmarks of clipjax beside its peers; docs/performance.md says how to run them."""
