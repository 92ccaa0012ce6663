"""One process of a two-process evaluation; prints its metrics as JSON. Run by test_processes.py."""

import json
import os
import sys
from pathlib import Path

import jax

if __name__ == "__main__":
    port, folder, process = sys.argv[1:]
    os.environ["CLIPJAX_CACHE"] = f"{folder}/cache"
    jax.distributed.initialize(f"127.0.0.1:{port}", 2, int(process), initialization_timeout=600)

    import every_kind
    import numpy as np
    import test_budget
    import test_retrieval
    import test_zero_shot
    import test_zero_shot_tables
    from stand_ins import make_params
    from tiny import tiny_spec

    from clipjax.encoding.encode_fns import EncodeText
    from clipjax.evals.retrieval_answers import find_pictures
    from clipjax.models import build_model
    from clipjax.partitioning import make_mesh

    # Devices in an order in which no process holds adjacent rows.
    first, second = ([d for d in jax.devices() if d.process_index == i] for i in (0, 1))
    mixed = [d for pair in zip(first, second, strict=True) for d in pair]
    mesh = make_mesh({"data": 4, "fsdp": 1, "tensor": 1}, mixed)
    assert [d.process_index for d in mesh.devices.flat] == [0, 1, 0, 1]
    zero_shot = test_zero_shot.make_eval(test_zero_shot.make_source(23)[0], mesh)
    metrics, predictions = zero_shot.run(make_params()), zero_shot.predict(make_params(), 5)
    for name, found in test_zero_shot_tables.of_groups_and_several(mesh).items():
        metrics[name] = found
    retrieval = test_retrieval.make_eval(test_retrieval.make_source(23)[0], mesh)
    metrics |= retrieval.run(test_retrieval.related_params())
    flat = test_retrieval.rows_of(*test_retrieval.make_source(23)[::2], 1)
    if process == "1":  # which picture is whose the lead says: another's word does not count
        flat.pictures = lambda: range(len(flat))
    rows = test_retrieval.make_eval(flat, mesh).run(test_retrieval.related_params())
    metrics |= {f"rows/{name}": value for name, value in rows.items()}
    folds = test_retrieval.make_eval(test_retrieval.make_source(24)[0], mesh, fold=6)
    found = folds.run(test_retrieval.related_params())
    metrics |= {f"folds/{name}": value for name, value in found.items()}
    found = find_pictures(retrieval, test_retrieval.related_params(), num_queries=7)
    metrics["found"] = [[f.caption, f.rank, [p.key for p in f.pictures]] for f in found]
    metrics["predictions"] = [[p.key, p.names, p.scores] for p in predictions]
    metrics["budget"] = test_budget.of_one_clock(slow=process == "1")
    metrics["confused"] = test_zero_shot_tables.of_confused(mesh)
    metrics["queries"] = test_retrieval.of_queries(mesh)[0]
    metrics["kinds"] = every_kind.figures(mesh, Path(folder))
    # Texts of 6 tokens here, of 21 there: both cut to what holds the longer ones.
    tokens = np.zeros((2, 77), np.int32)
    tokens[:, 5 + 15 * int(process)] = 19
    model = build_model(tiny_spec(text={"context_length": 77}))
    metrics["cut"] = EncodeText(model).cut(tokens, mesh).shape[1]
    source = test_zero_shot.make_source(23)[0]
    source.examples[22]["image"] = b"not an image"
    try:
        test_zero_shot.make_eval(source, mesh).run(make_params())
    except ValueError as error:
        metrics["error"] = str(error)
    source = test_retrieval.make_source(23)[0]
    source.examples[22]["text"] = ""
    try:
        test_retrieval.make_eval(source, mesh).run(test_retrieval.related_params())
    except ValueError as error:
        metrics["refused"] = str(error)
    sys.stdout.write(json.dumps(metrics) + "\n")
