"""One case of benchmarks/accelerator.py, in a process of its own: `CASE --out FILE [--tiny]`.

It appends its rows to the file as they are known. A peer that is not installed, a lack of memory
and a failure are rows, too.
"""

import argparse
import functools
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.common import ROOT, MissingError, append_line, load_average, time_steps
from benchmarks.sizes import Size, Step

Report = Callable[[Mapping[str, Any]], None]


class Case(NamedTuple):
    """One line of the list.

    Attributes:
        name: of its rows.
        what: for people.
        limit_s: its time; then its process is ended.
        run: what measures it: (tiny, report) -> None.
        against: of a peer, the cases of clipjax that have a ratio to it.
    """

    name: str
    what: str
    limit_s: float
    run: Callable[[bool, Report], None]
    against: tuple[str, ...] = ()


# --- steps ----------------------------------------------------------------------------------------


def report_step(size: Size, step: Step, report: Report) -> dict[str, Any]:
    """Times a step and reports it: speed, MFU, memory, and the loss at both ends."""
    losses: list[Any] = []

    def run() -> Any:
        losses.append(step.run())
        return losses[-1]

    chunks = time_steps(run, step.wait, chunks=2 if size.tiny else 4, most_s=15)
    first, last = step.facts.get("loss_first", step.wait(losses[0])), step.wait(losses[-1])
    seconds = statistics.median(chunks)
    held, held_in = step.peak_bytes()
    row = {
        "model": size.model,
        "batch": size.examples,
        "dtype": size.dtype,
        **({"note": size.note} if size.note else {}),
        **step.facts,
        "steps": len(losses),
        "step_ms": seconds * 1e3,
        "step_ms_of_chunks": [chunk * 1e3 for chunk in chunks],
        "images_per_s": size.examples / seconds,
        "peak_memory_gb": held / 1e9,
        "memory_of": held_in,
        "loss_first": first,
        "loss_last": last,
        # On one batch the loss of a step that is whole falls; a ratio to another means nothing.
        "learns": bool(last < first),
        "load_average": load_average(),
    }
    report({**row, **mfu_of(size, row)})
    return row


def mfu_of(size: Size, row: Mapping[str, Any]) -> dict[str, Any]:
    """The share of the published peak, by the FLOPs of the model: the same for both sides."""
    from benchmarks import ours

    gflops = row.get("train_gflops_an_example")
    if gflops is None:
        gflops = flops_of(size)
    facts = {"train_gflops_an_example": gflops}
    chip = row.get("chip") or ours.chip_of(row["device"])
    if chip is not None:
        peak = ours.CHIPS[chip].flops
        facts |= {"chip": chip, "peak_tflops": peak / 1e12}
        facts["mfu"] = row["images_per_s"] * gflops * 1e9 / peak
    return facts


def flops_of(size: Size) -> float:
    """GFLOPs of training on one example, forward and backward, nothing recomputed."""
    from benchmarks import ours
    from clipjax.plan.model_flops import model_flops

    resolved = ours.resolve_config(size, {})
    return model_flops(resolved.spec, resolved.model, size.examples).train / 1e9


def our_step(model: str, batch: int, tiny: bool, report: Report, **changes: Any) -> None:
    from benchmarks import ours

    size = Size(model, batch, tiny=tiny)
    named = {name.replace("__", "."): value for name, value in changes.items()}
    report_step(size, ours.make_step(size, named)[0], report)


def open_clip_step(
    model: str, batch: int, tiny: bool, report: Report, *, compiled: bool = False
) -> None:
    # JAX counts the FLOPs afterwards, on the host: the card is torch's alone.
    os.environ["JAX_PLATFORMS"] = "cpu"
    from benchmarks import peers

    size = Size(model, batch, tiny=tiny)
    report_step(size, peers.make_step(size, compiled=compiled), report)


# --- kernels --------------------------------------------------------------------------------------


def kernels(model: str, batch: int, tiny: bool, report: Report, *, steps: int = 3) -> None:
    """Kernel times by name of traced steps, after warm ones."""
    from benchmarks import ours
    from clipjax.profiling import kernel_times

    size = Size(model, batch, tiny=tiny)
    step, compiled = ours.make_step(size)
    for _ in range(3):
        step.wait(step.run())

    def run() -> None:
        for _ in range(steps):
            loss = step.run()
        step.wait(loss)

    with tempfile.TemporaryDirectory() as folder:
        begin = time.perf_counter()
        lines = kernel_times.trace(run, Path(folder) / "trace")
        traced_s = time.perf_counter() - begin
    if not lines:
        raise MissingError("the trace holds no kernels: is CUPTI there?")
    origins = kernel_times.origins(compiled.as_text())
    found = kernel_times.summarise(lines, origins, steps=steps)
    spans = [span for line in lines for span in line]
    whole = max(s.start + s.length for s in spans) - min(s.start for s in spans)
    report(
        {
            "model": model,
            "batch": size.examples,
            "dtype": size.dtype,
            **step.facts,
            "traced_steps": steps,
            "traced_s": traced_s,
            "step_ms": whole / 1e6 / steps,  # from the first kernel to the end of the last
            "streams": len(lines),
            **found,
        }
    )


# --- the loss alone -------------------------------------------------------------------------------


def loss(batch: int, side: str, tiny: bool, report: Report, *, embed: int = 512) -> None:
    """Forward and backward of the softmax loss of bfloat16 embeddings."""
    batch = 64 if tiny else batch
    if side == "open_clip":
        from benchmarks import peers
        from benchmarks.embeddings import random_embeddings

        step = peers.make_loss_step(*random_embeddings(batch, embed))
    else:
        from benchmarks import ours

        step = ours.make_loss_step(batch, embed, side)
    begin = time.perf_counter()
    value = step.wait(step.run())
    first_s = time.perf_counter() - begin
    chunks = time_steps(step.run, step.wait, chunks=2 if tiny else 5, most_s=10)
    held, held_in = step.peak_bytes()
    report(
        {
            "batch": batch,
            "embed": embed,
            "dtype": "bfloat16",
            **step.facts,
            "first_call_s": first_s,
            "step_ms": statistics.median(chunks) * 1e3,
            "step_ms_of_chunks": [chunk * 1e3 for chunk in chunks],
            "peak_memory_gb": held / 1e9,
            "extra_memory_gb": held / 1e9 - step.facts["memory_before_gb"],
            "memory_of": held_in,
            "loss_last": value,
        }
    )


# --- encoding -------------------------------------------------------------------------------------


def encode(model: str, batch: int, side: str, tiny: bool, report: Report) -> None:
    """Images and texts a second of a trained model's encoders, rows already on the device."""
    size = Size(model, batch, tiny=tiny)
    if side == "open_clip":
        from benchmarks import peers

        (image, text), wait, facts = peers.make_encoders(size)
    else:
        image, text, wait, facts = our_encoders(size)
    row: dict[str, Any] = {"model": model, "batch": size.examples, "dtype": size.dtype, **facts}
    for name, run in (("images", image), ("texts", text)):
        begin = time.perf_counter()
        wait(run())
        row[f"{name}_first_call_s"] = time.perf_counter() - begin
        chunks = time_steps(run, wait, chunks=2 if tiny else 4, most_s=6)
        row[f"{name}_per_s"] = size.examples / statistics.median(chunks)
    report(row)


def our_encoders(size: Size) -> tuple[Any, Any, Any, dict[str, Any]]:
    import jax
    import numpy as np

    from benchmarks import ours
    from clipjax.encoding.compiled import embed_fn

    model = ours.make_model(size)
    rng = np.random.default_rng(0)
    pixels, length = model.spec["image_size"], model.spec["text"]["context_length"]
    images = rng.integers(0, 255, (size.examples, pixels, pixels, 3), np.uint8)
    tokens = rng.integers(1, 99, (size.examples, length)).astype(np.int32)
    images, tokens = (jax.device_put(x, jax.local_devices()[0]) for x in (images, tokens))
    image, text = (embed_fn(fn, model.mesh) for fn in model.encode_fns[:2])
    return (
        lambda: image(model.variables, images),
        lambda: text(model.variables, tokens),
        jax.block_until_ready,
        ours.device_facts(),
    )


# --- a real run -----------------------------------------------------------------------------------

RUN_CONFIG = """
from benchmarks.ours import make_config
from benchmarks.sizes import Size


def get_config(arg=None):
    config = make_config(Size({model!r}, {batch}, tiny={tiny}), {{}})
    config.data.source = "tar:{shards}/*.tar"
    config.data.transforms = (
        {{"name": "random_resized_crop", "scale": (0.9, 1.0), "decode": {decode!r}}},
    )
    config.data.num_workers = {workers}
    config.data.prefetch = 4
    config.total_steps = {steps}
    config.schedule.warmup_steps = 1
    config.log_every = {log_every}
    config.checkpoint.every_steps = {steps}
    config.report = False
    return config
"""


ASK = """
import json
from benchmarks import ours
ours.check_platform()
print(json.dumps(ours.device_facts()))
"""


def device_of_a_process() -> dict[str, Any]:
    """The device that a process has which starts now; asked in one, which lets go of it again.

    Raises:
        MissingError: this machine has a GPU that JAX does not see.
    """
    command = [sys.executable, "-c", ASK]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["without a word"])[-1]
        name, _, reason = last.partition(": ")
        raise (MissingError(reason) if name.endswith("MissingError") else RuntimeError(last))
    facts: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return facts


def training_run(model: str, batch: int, tiny: bool, report: Report, *, steps: int = 80) -> None:
    """`clipjax train` on JPEGs in tar shards, decoded by all host cores: does the device wait?"""
    from benchmarks.pictures import waves, write_shards

    facts = device_of_a_process()
    size, steps = Size(model, batch, tiny=tiny), 6 if tiny else steps
    has_fast = all(importlib.util.find_spec(name) for name in ("simplejpeg", "cv2"))
    values = {
        "model": model,
        "batch": batch,
        "tiny": tiny,
        "steps": steps,
        "log_every": max(1, steps // 8) if not tiny else 2,
        "workers": len(os.sched_getaffinity(0)),
        "decode": "fast" if has_fast else "reference",
    }
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / "shards").mkdir()
        jpegs = [waves((500, 375), seed) for seed in range(2 if tiny else 24)]
        shards = {"shards": 2, "images": 16} if tiny else {"shards": 16, "images": 512}
        write_shards(folder / "shards", jpegs, **shards)
        config = folder / "config.py"
        config.write_text(RUN_CONFIG.format(shards=folder / "shards", **values), encoding="utf-8")
        command = [sys.executable, "-m", "clipjax", "train", "--config", str(config)]
        begin = time.perf_counter()
        done = subprocess.run(
            [*command, "--workdir", str(folder / "run")], cwd=ROOT, capture_output=True, text=True
        )
        wall_s = time.perf_counter() - begin
        if done.returncode != 0:
            raise RuntimeError(f"clipjax train ended with {done.returncode}: {done.stderr[-400:]}")
        lines = (folder / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    logged = [json.loads(line) for line in lines]
    steady = logged[1:]  # the first holds the start of the workers
    report(
        {
            **values,
            **facts,
            "batch": size.examples,
            "dtype": size.dtype,
            "kb_a_jpeg": sum(map(len, jpegs)) / len(jpegs) / 1e3,
            "images_per_s": statistics.median(line["samples_per_s"] for line in steady),
            "data_wait_fraction": statistics.median(line["data_wait_fraction"] for line in steady),
            "loss_first": logged[0]["loss"],
            "loss_last": logged[-1]["loss"],
            "run_wall_s": wall_s,
            "images_per_s_logged": [line["samples_per_s"] for line in logged],
        }
    )


# --- the list -------------------------------------------------------------------------------------


def case(
    name: str, what: str, limit_s: float, run: Callable[..., None], *arguments: Any, **named: Any
) -> Case:
    """One line of the list; `against` among the named ones: cases that have a ratio to it."""
    against = tuple(str(named.pop("against", "")).split())

    def measure(tiny: bool, report: Report) -> None:
        run(*arguments, tiny, report, **named)

    return Case(name, what, limit_s, measure, against)


B16, L14, B32 = ("ViT-B-16", 256), ("ViT-L-14", 128), ("ViT-B-32", 1024)
SIGLIP, RN50 = ("siglip-b-16-224", 256), ("RN50", 256)
ALL_B16 = "b16 b16_names"  # of the same batch as the peer
CASES = {
    entry.name: entry
    for entry in (
        case("b16", "ViT-B/16, every default", 90, our_step, *B16),
        case(
            "b16_open_clip",
            "open_clip's ViT-B/16, eager",
            60,
            open_clip_step,
            *B16,
            against=ALL_B16,
        ),
        case("b16_names", "ViT-B/16, few products kept", 90, our_step, *B16, remat="names"),
        # One card holds it with nothing recomputed at 256; this asks what a larger batch is worth.
        case("b16_512", "ViT-B/16, every default, twice the batch", 90, our_step, "ViT-B-16", 512),
        case("loss_32k", "softmax loss of 32,768 pairs", 45, loss, 2**15, "auto"),
        case(
            "loss_32k_open_clip",
            "open_clip's ClipLoss of 32,768 pairs",
            45,
            loss,
            2**15,
            "open_clip",
            against="loss_32k",
        ),
        case("kernels", "ViT-B/16, kernel times of three traced steps", 90, kernels, *B16),
        case("l14", "ViT-L/14, every default", 150, our_step, *L14),
        case(
            "l14_open_clip", "open_clip's ViT-L/14, eager", 75, open_clip_step, *L14, against="l14"
        ),
        case("b32", "ViT-B/32, every default", 90, our_step, *B32),
        case(
            "b32_open_clip", "open_clip's ViT-B/32, eager", 60, open_clip_step, *B32, against="b32"
        ),
        case(
            "b16_open_clip_compiled",
            "open_clip's ViT-B/16 by torch.compile",
            300,
            open_clip_step,
            *B16,
            compiled=True,
            against=ALL_B16,
        ),
        case("encode", "ViT-B/16, images and texts embedded", 60, encode, "ViT-B-16", 512, "ours"),
        case(
            "encode_open_clip",
            "open_clip's ViT-B/16, images and texts embedded",
            60,
            encode,
            "ViT-B-16",
            512,
            "open_clip",
            against="encode",
        ),
        case(
            "training_run",
            "clipjax train from tar shards, ViT-B/16",
            150,
            training_run,
            *B16,
        ),
        case("siglip_b16", "SigLIP B/16, every default", 90, our_step, *SIGLIP),
        case(
            "siglip_b16_open_clip",
            "open_clip's SigLIP B/16, eager",
            60,
            open_clip_step,
            *SIGLIP,
            against="siglip_b16",
        ),
        case("rn50", "RN50, every default", 120, our_step, *RN50),
        case(
            "rn50_open_clip", "open_clip's RN50, eager", 60, open_clip_step, *RN50, against="rn50"
        ),
        case("loss_8k", "softmax loss of 8,192 pairs", 45, loss, 2**13, "auto"),
        case(
            "loss_8k_open_clip",
            "open_clip's ClipLoss of 8,192 pairs",
            45,
            loss,
            2**13,
            "open_clip",
            against="loss_8k",
        ),
        case("loss_128k", "softmax loss of 131,072 pairs", 60, loss, 2**17, "auto"),
        case(
            "loss_128k_open_clip",
            "open_clip's ClipLoss of 131,072 pairs",
            60,
            loss,
            2**17,
            "open_clip",
            against="loss_128k",
        ),
        case("loss_32k_dense", "dense softmax loss of 32,768 pairs", 45, loss, 2**15, "dense"),
    )
}


def failure_of(error: BaseException) -> tuple[str, str]:
    """Status and reason of a case that raised."""
    reason = f"{type(error).__name__}: {error}".splitlines()[0][:400]
    if isinstance(error, MissingError):
        return "missing", str(error)
    if "RESOURCE_EXHAUSTED" in str(error) or type(error).__name__ == "OutOfMemoryError":
        return "out of memory", reason
    return "failed", reason


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("case", choices=list(CASES))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args()
    chosen = CASES[options.case]
    report = functools.partial(write_row, options.out, chosen)
    try:
        chosen.run(options.tiny, report)
    except Exception as error:  # whatever it is becomes a row: the list goes on
        status, reason = failure_of(error)
        report({"status": status, "reason": reason})
        if status == "failed":
            traceback.print_exc()


def write_row(out: Path, chosen: Case, row: Mapping[str, Any]) -> None:
    """Appends a row of a case."""
    append_line(out, {"case": chosen.name, "what": chosen.what, "status": "ok", **row})


if __name__ == "__main__":
    main()
