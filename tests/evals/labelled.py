"""Sets of pictures with labels that probes learn from, of the stand-in model."""

import numpy as np
from stand_ins import Source, make_params, mesh_of, picture, unit

from clipjax.evals import logistic, probe
from clipjax.partitioning import place, replicated

NAMES = ("red", "green", "blue", "grey")


class Labelled(Source):
    """Pictures whose classes lie apart in the embeddings, but not without overlap."""

    def __init__(self, rows, labels, class_names=NAMES):
        examples = [
            {"image": picture(row), "text": class_names[label], "label": int(label)}
            for row, label in zip(rows, labels, strict=True)
        ]
        super().__init__(examples, class_names)
        self.rows, self.all_labels = np.asarray(rows), np.asarray(labels)

    def fingerprint(self):
        return str(hash((tuple(self.rows), tuple(self.all_labels))))


LABELS = np.random.default_rng(5).integers(0, len(NAMES), 256)


def make_sets():
    """Training and test set and one held out, by their names as SPECs, and the parameters."""
    params = make_params()
    centres = np.random.default_rng(6).normal(size=(len(NAMES), 8))
    params["image"] = (params["image"] + centres[LABELS]).astype(np.float32)
    found = {
        "train": Labelled(np.arange(150), LABELS[:150]),
        "test": Labelled(np.arange(150, 221), LABELS[150:221]),
        "held": Labelled(np.arange(221, 256), LABELS[221:]),
    }
    return found, params


def rows_of(found, params, name="train"):
    """Features and labels of a set."""
    return unit(params["image"][found[name].rows]), found[name].all_labels


def fit_here(rows, labels, strength, devices):
    mesh = mesh_of(devices)
    on_mesh = place(np.array(strength, np.float32), replicated(mesh))
    start = logistic.zeros(rows.shape[1], len(NAMES), mesh)
    return logistic.fit(*probe.on_devices(mesh, rows, labels.astype(np.int32)), on_mesh, start)
