"""A folder of embeddings of a dataset: writing it, and searching, cleaning and grouping it."""
