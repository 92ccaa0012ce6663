"""Looking at a dataset: what is damaged, what it holds, a sheet of it."""
