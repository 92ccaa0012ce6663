"""Times the linear probe's fit beside scikit-learn's on the same features.

    python benchmarks/probe.py --rows 50000 --embed 512 --classes 1000 --strength 1

Needs scikit-learn. Features are drawn around a centre a class and normalised; a fifth as many more
are classified. Prints one JSON object: seconds, of wall and of CPU, loss and accuracy of both;
compilation apart. On a machine that others use, too, CPU seconds are what compares.
"""

import argparse
import json
import sys
import time

import jax
import numpy as np
from sklearn.linear_model import LogisticRegression

from clipjax.evals import logistic
from clipjax.evals.probe import on_devices
from clipjax.partitioning import make_mesh, place, replicated


def draw(rows: int, embed: int, classes: int, noise: float) -> tuple[np.ndarray, np.ndarray]:
    """Draws features, of length 1, and labels."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(classes, embed))
    labels = rng.integers(0, classes, rows)
    labels[:classes] = np.arange(classes)  # each has one
    features = centres[labels] + noise * rng.normal(size=(rows, embed))
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    return features.astype(np.float32), labels.astype(np.int32)


def main() -> None:
    """Compares."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    for name, default in (("rows", 50_000), ("embed", 512), ("classes", 1_000)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--strength", type=float, default=1.0, help="lambda; C is 1 / lambda")
    parser.add_argument("--noise", type=float, default=3.0)
    parser.add_argument("--solver", default="newton-cg", help="scikit-learn's")
    parser.add_argument("--tol", type=float, default=1e-4, help="of that solver")
    asked = parser.parse_args()
    rows = asked.rows + asked.rows // 5
    features, labels = draw(rows, asked.embed, asked.classes, asked.noise)
    train, test = slice(0, asked.rows), slice(asked.rows, rows)

    mesh = make_mesh({"data": -1})
    on_mesh = on_devices(mesh, features[train], labels[train])
    strength = place(np.array(asked.strength, np.float32), replicated(mesh))
    start = logistic.zeros(asked.embed, asked.classes, mesh)
    begin = time.perf_counter()
    compiled = logistic.fit.lower(*on_mesh, strength, start).compile()
    compiling = time.perf_counter() - begin
    begin, spent = time.perf_counter(), time.process_time()
    found = jax.block_until_ready(compiled(*on_mesh, strength, start))
    took = {"seconds": time.perf_counter() - begin, "cpu_seconds": time.process_time() - spent}

    def judge(weights: logistic.Weights) -> dict[str, float]:
        loss = jax.jit(logistic.objective)(weights, *on_mesh, strength)
        answers = (features[test] @ np.asarray(weights.matrix) + np.asarray(weights.bias)).argmax(1)
        return {"loss": float(loss), "accuracy": float((answers == labels[test]).mean())}

    ours = {**took, "compiling": compiling, "iterations": int(found.iterations)}
    ours |= judge(found.weights)
    theirs = LogisticRegression(
        C=1 / asked.strength,
        max_iter=logistic.MAX_ITERATIONS,
        solver=asked.solver,
        tol=asked.tol,
    )
    begin, spent = time.perf_counter(), time.process_time()
    theirs.fit(features[train], labels[train])
    took = {"seconds": time.perf_counter() - begin, "cpu_seconds": time.process_time() - spent}
    weights = logistic.Weights(
        *(
            place(a.astype(np.float32), replicated(mesh))
            for a in (theirs.coef_.T, theirs.intercept_)
        )
    )
    sklearn = {**took, "iterations": int(theirs.n_iter_.max()), **judge(weights)}
    report = {**vars(asked), "devices": str(jax.devices()[0]), "ours": ours, "sklearn": sklearn}
    sys.stdout.write(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
