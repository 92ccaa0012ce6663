"""Metrics as pure functions of arrays: accuracy of a classifier, recall of a retrieval."""

from clipjax.metrics.accuracy import (
    count_per_class,
    mean_per_class_recall,
    topk_hits,
)
from clipjax.metrics.retrieval import empty_topk, merge_topk, retrieval_hits
