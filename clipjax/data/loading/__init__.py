"""Batches as a pure function of the step, made ahead by workers."""
