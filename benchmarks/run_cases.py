"""One side of a case of benchmarks/run.py, in a process that waits for its turn: `CASE SIDE`."""

import argparse
import os
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from benchmarks.common import MissingError
from benchmarks.sizes import QUICKSTART, Size
from benchmarks.workers import serve

CLIPJAX, EAGER, COMPILED = "clipjax", "open_clip eager", "open_clip compiled"


class Case(NamedTuple):
    """A measurement that several sides take in turns.

    Attributes:
        size: what is computed.
        what: `step`, `embed` or `head`.
        times: steps, pictures, or prompts of a zero-shot classifier, of one turn.
        sides: the first is ours, the others are compared with it.
        note: what differs between the sides, for whoever reads the ratio.
    """

    size: Size
    what: str
    times: int
    sides: tuple[str, ...]
    note: str = ""


STEPS = (CLIPJAX, EAGER, COMPILED)
HEAD = "every 500th of ImageNet's 1,000 names; open_clip computes all 77 positions of a prompt"
AUTOCAST = "`dtype=bfloat16`; open_clip by its own `amp_bf16`"
CASES = {
    "step of ViT-B/32, batch 16, float32": Case(Size("ViT-B-32", 16, "float32"), "step", 1, STEPS),
    "step of RN50, batch 16, float32": Case(Size("RN50", 16, "float32"), "step", 1, STEPS),
    "step of the quickstart's model, batch 256, float32": Case(
        Size(QUICKSTART, 256, "float32"),
        "step",
        2,
        STEPS,
        "both by AdamW, which the quickstart itself does not train by",
    ),
    "JPEG to embedding, ViT-B/32, float32": Case(
        Size("ViT-B-32", 64, "float32"), "embed", 64, (CLIPJAX, EAGER)
    ),
    "JPEG to embedding, RN50, float32": Case(
        Size("RN50", 64, "float32"), "embed", 64, (CLIPJAX, EAGER)
    ),
    "JPEG to embedding, ViT-B/32, bfloat16": Case(
        Size("ViT-B-32", 64, "bfloat16"), "embed", 64, (CLIPJAX, EAGER), AUTOCAST
    ),
    "prompt to classifier, ViT-B/32, float32": Case(
        Size("ViT-B-32", 160, "float32"), "head", 160, (CLIPJAX, EAGER), HEAD
    ),
    "prompt to classifier, RN50, float32": Case(
        Size("RN50", 160, "float32"), "head", 160, (CLIPJAX, EAGER), HEAD
    ),
    # A stand-in that shows whether all of this runs.
    "tiny": Case(Size("ViT-B-32", 4, "float32", tiny=True), "step", 1, (CLIPJAX, EAGER)),
}


def prepare(case: Case, side: str) -> Callable[[], Any]:
    """Makes what one turn runs; it returns a loss, or a norm, that shows that it computed."""
    compiled, ours = side == COMPILED, side == CLIPJAX
    if case.what == "embed":
        return prepare_embedding(case, ours=ours)
    if case.what == "head":
        return prepare_head(case, ours=ours)
    if ours:
        from benchmarks.ours import make_step

        step = make_step(case.size)[0]
    else:
        from benchmarks.peers import make_step as make_peer

        step = make_peer(case.size, compiled=compiled)

    def run() -> float:
        for _ in range(case.times):
            loss = step.run()
        return step.wait(loss)

    return run


def prepare_embedding(case: Case, *, ours: bool) -> Callable[[], Any]:
    import numpy as np

    from benchmarks.pictures import waves

    files = [waves((500, 375), seed) for seed in range(8)]
    files = [files[i % len(files)] for i in range(case.times)]
    if ours:
        from benchmarks.ours import make_model

        encode = make_model(case.size).encode_image
    else:
        from benchmarks.peers import make_picture_encoder

        encode = make_picture_encoder(case.size)
    return lambda: float(np.linalg.norm(encode(files)))


def prepare_head(case: Case, *, ours: bool) -> Callable[[], Any]:
    """The classifier of ImageNet's names, evenly spaced, by OpenAI's 80 templates."""
    import numpy as np

    from clipjax.data.classes.named_lists import load_class_names

    names = load_class_names("imagenet")
    names = names[:: len(names) * 80 // case.times]
    if ours:
        from benchmarks.ours import make_model

        model = make_model(case.size)
        return lambda: float(np.linalg.norm(model.zero_shot(names, "openai_80").weights))
    from benchmarks.peers import make_head_builder

    build = make_head_builder(case.size)
    return lambda: float(np.linalg.norm(build(names)))


def make_answer(case: Case, side: str) -> Callable[[str], Any]:
    """Answers `ready` with the seconds of the preparation, `time` with wall, CPU and the value."""
    begin, spent = time.perf_counter(), time.process_time()
    run = prepare(case, side)
    value = run()  # what is left to compile
    prepared = {
        "wall_s": time.perf_counter() - begin,
        "cpu_s": time.process_time() - spent,
        "value": value,
    }

    def answer(word: str) -> Any:
        if word == "ready":
            return prepared
        if word != "time":
            raise ValueError(f"{word!r} is no word: ready or time")
        begin, spent = time.perf_counter(), time.process_time()
        value = run()
        return {
            "wall_s": (time.perf_counter() - begin) / case.times,
            "cpu_s": (time.process_time() - spent) / case.times,
            "value": value,
        }

    return answer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("case", choices=list(CASES))
    parser.add_argument("side", choices=[CLIPJAX, EAGER, COMPILED])
    options = parser.parse_args()
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    # A neighbour's tests may ask for several devices or for quick compilations: not here.
    for name in ("XLA_FLAGS", "JAX_DISABLE_MOST_OPTIMIZATIONS", "JAX_COMPILATION_CACHE_DIR"):
        os.environ.pop(name, None)
    serve(lambda: make_answer(CASES[options.case], options.side))


if __name__ == "__main__":
    try:
        main()
    except MissingError as error:
        sys.exit(str(error))
