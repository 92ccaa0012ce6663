"""Metrics as pure functions of arrays: accuracy of a classifier, ranks of a retrieval."""

from clipjax.metrics.accuracy import (
    count_per_class,
    mean_per_class_recall,
    reliability_bins,
    topk_hits,
    topk_hits_of_several,
)
from clipjax.metrics.precision import average_precision
from clipjax.metrics.retrieval import best_positive, count_before, nearest, no_positive
