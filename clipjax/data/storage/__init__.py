"""Reading files, local or in a bucket: paths, retries, caches."""
