"""The contrastive loss beside its peers: time and memory on CPU, compile-time facts for TPU.

    python benchmarks/loss.py --part cpu     needs the extras [interop]
    python benchmarks/loss.py --part tpu     needs the extra [tpu]; no TPU
    python benchmarks/loss.py --part error   the two dtypes of the products, against float64

CPU: open_clip's ClipLoss in torch, the dense JAX loss and clipjax, interleaved; every memory figure
in a process of its own. TPU: ahead-of-time compilation for a topology; nothing runs. Errors: on a
CPU, where products of bfloat16 are exact and sums are float32, as in a matrix unit.
"""

import argparse
import os
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

if __name__ == "__main__" and not __package__:  # a file: the checkout in place of its folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks.common import forget_peak_memory, load_average, setting_lines, status_bytes
from benchmarks.loss_hlo import costs
from benchmarks.peers import libraries
from benchmarks.workers import Worker, serve

SCALE, BIAS, SEED = 14.2857, -10.0, 0
REPEATS = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--part", choices=["cpu", "tpu", "error"], required=True)
    parser.add_argument("--batches", type=int, nargs="+", default=[4096, 8192, 16384])
    parser.add_argument("--embed", type=int, default=512)
    parser.add_argument("--cases", nargs="+", default=list(TPU_CASES), choices=list(TPU_CASES))
    parser.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        run, batch, embed = options.worker
        serve(lambda: make_answer(run, int(batch), int(embed)))
    elif options.part == "cpu":
        cpu_tables(options.batches, options.embed)
    elif options.part == "error":
        error_table(options.batches[0], options.embed)
    else:
        tpu_table(options.cases)


# --- CPU -----------------------------------------------------------------------------------------

CPU_RUNS = {
    "open_clip ClipLoss (torch)": "torch:clip",
    "JAX dense clip": "dense:clip",
    "clipjax clip": "auto:clip",
    "open_clip SigLipLoss (torch)": "torch:siglip",
    "JAX dense siglip": "dense:siglip",
    "clipjax siglip": "auto:siglip",
}


def cpu_tables(batches: list[int], embed: int) -> None:
    print("\n".join(setting_lines("jax", "torch", "open_clip_torch", "numpy")))
    print(f"- float32, forward + backward, embed {embed}, random unit embeddings, seed {SEED};")
    print(f"  time: minimum of {REPEATS} interleaved runs after a warm-up; memory: growth of the")
    print("  resident set at its highest during one run, in a fresh process, after compilation;")
    print("  the last three columns: open_clip's figure over this one's, higher is better")
    for batch in batches:
        memory = {label: extra_memory(run, batch, embed) for label, run in CPU_RUNS.items()}
        seconds, cpu_seconds, losses = interleaved(batch, embed)
        print(f"\n### Batch {batch}\n")
        print("| loss | seconds | CPU seconds | extra MB | value | time | CPU time | memory |")
        print("|---|---|---|---|---|---|---|---|")
        for label, run in CPU_RUNS.items():
            peer = next(k for k, v in CPU_RUNS.items() if v == "torch:" + run.split(":")[1])
            wall, spent = min(seconds[label]), min(cpu_seconds[label])
            print(f"| {label} | {wall:.2f} | {spent:.2f} | {memory[label]:.0f} ", end="")
            print(f"| {losses[label]:.6f} | {min(seconds[peer]) / wall:.2f}x ", end="")
            print(f"| {min(cpu_seconds[peer]) / spent:.2f}x ", end="")
            print(f"| {memory[peer] / memory[label]:.1f}x |")
        print(f"\nLoad average {load_average()}; all runs in seconds: ", end="")
        print("; ".join(f"{k}: {' '.join(f'{s:.2f}' for s in v)}" for k, v in seconds.items()))
        sys.stdout.flush()


def start_worker(run: str, batch: int, embed: int) -> Worker:
    return Worker([__file__, "--part", "cpu", "--worker", run, str(batch), str(embed)])


def extra_memory(run: str, batch: int, embed: int) -> float:
    with start_worker(run, batch, embed) as process:
        return process.ask("memory") / 1e6


def interleaved(batch: int, embed: int) -> tuple[dict, dict, dict]:
    """Seconds and CPU seconds of every run, and loss values, by label."""
    workers = {label: start_worker(run, batch, embed) for label, run in CPU_RUNS.items()}
    seconds, cpu_seconds = ({label: [] for label in workers} for _ in range(2))
    losses = {}
    for turn in range(REPEATS + 1):
        for label, process in workers.items():
            elapsed, spent, losses[label] = process.ask("time")
            if turn:
                seconds[label].append(elapsed)
                cpu_seconds[label].append(spent)
    for process in workers.values():
        process.close()
    return seconds, cpu_seconds, losses


def make_answer(run: str, batch: int, embed: int) -> Callable[[str], Any]:
    """Answers "time" with seconds, CPU seconds, loss; "memory" with bytes."""
    rng = np.random.default_rng(SEED)
    image, text = (rng.standard_normal((batch, embed), np.float32) for _ in range(2))
    image /= np.linalg.norm(image, axis=1, keepdims=True)
    text /= np.linalg.norm(text, axis=1, keepdims=True)
    kind, name = run.split(":")
    step = torch_step(name, image, text) if kind == "torch" else jax_step(kind, name, image, text)

    def answer(word: str) -> Any:
        if word == "memory":
            forget_peak_memory()
            before = status_bytes("VmRSS")
            step()
            return status_bytes("VmHWM") - before
        start, spent = time.perf_counter(), time.process_time()
        loss = step()
        return time.perf_counter() - start, time.process_time() - spent, loss

    return answer


def torch_step(name: str, image, text):
    torch, _ = libraries()
    from open_clip.loss import ClipLoss, SigLipLoss

    def leaf(value):
        return torch.tensor(value, requires_grad=True)

    leaves = leaf(image), leaf(text), leaf(SCALE)
    bias = {"logit_bias": leaf(BIAS)} if name == "siglip" else {}
    loss_fn = ClipLoss() if name == "clip" else SigLipLoss()

    def step() -> float:
        for each in (*leaves, *bias.values()):
            each.grad = None
        loss = loss_fn(*leaves, **bias)
        loss.backward()
        return loss.item()

    return step


def jax_step(layout: str, name: str, image, text):
    os.environ["JAX_PLATFORMS"] = "cpu"
    import jax
    import jax.numpy as jnp

    from clipjax.losses import make_loss

    inputs = [jnp.asarray(x) for x in (image, text, np.float32(np.log(SCALE)), np.float32(BIAS))]
    numbers = (0, 1, 2) if name == "clip" else (0, 1, 2, 3)
    step_fn = jax.jit(jax.value_and_grad(make_loss(name, layout=layout), numbers, has_aux=True))
    compiled = step_fn.lower(*inputs).compile()

    def step() -> float:
        (loss, _), gradients = jax.block_until_ready(compiled(*inputs))
        del gradients
        return float(loss)

    return step


# --- errors --------------------------------------------------------------------------------------


def error_table(batch: int, embed: int) -> None:
    """Loss and gradients against float64, for embeddings at the start of a run and late in it."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    import jax
    import jax.numpy as jnp

    from clipjax.losses import make_loss

    print("\n".join(setting_lines("jax", "numpy")))
    print(f"- batch {batch}, embed {embed}, clip, layout grid, seed {SEED}; float32 embeddings,")
    print("  gradients float32; errors are against float64 of the same embeddings: of the loss")
    print("  |d| / |loss|, of the gradients the norm of the difference over that of the gradient")
    print("- start: independent embeddings, scale 14.3; late: texts near their images, scale 100")
    print(
        "- mixed: negatives of rounded embeddings, positives of exact ones, in float64: what a TPU"
    )
    print("  makes of float32 products whose precision is left to it\n")
    print("| embeddings | products | loss | error of the loss | images | texts | scale |")
    print("|---|---|---|---|---|---|---|")
    rng = np.random.default_rng(SEED)
    for state, noise, scale in (("start", None, SCALE), ("late", 6.0, 100.0)):
        image = _unit(rng.standard_normal((batch, embed)))
        text = rng.standard_normal((batch, embed))
        text = _unit(text if noise is None else image + noise * _unit(text))
        image, text = image.astype(np.float32), text.astype(np.float32)
        rounded = [
            np.asarray(jnp.asarray(x, jnp.bfloat16).astype(jnp.float32)) for x in (image, text)
        ]
        expected = _float64_clip(image, text, scale)
        found = {"mixed": _float64_clip(image, text, scale, negatives=rounded)}
        for dtype in ("float32", "bfloat16"):
            loss_fn = make_loss("clip", layout="grid", dtype=dtype)
            step = jax.jit(jax.value_and_grad(loss_fn, (0, 1, 2), has_aux=True))
            (loss, _), gradients = step(image, text, jnp.float32(np.log(scale)))
            found[dtype] = (float(loss), *(np.asarray(g, np.float64) for g in gradients))
        for dtype in ("float32", "bfloat16", "mixed"):
            errors = [
                np.linalg.norm(a - b) / np.linalg.norm(b)
                for a, b in zip(found[dtype], expected, strict=True)
            ]
            print(f"| {state} | {dtype} | {expected[0]:.4f} | ", end="")
            print(" | ".join(f"{error:.1e}" for error in errors) + " |", flush=True)


def _unit(x):
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def _float64_clip(image, text, scale: float, *, negatives=None):
    """Loss and gradients (image, text, log scale), from the formulas."""
    x, y = image.astype(np.float64), text.astype(np.float64)
    batch = len(x)
    positives = np.sum(x * y, axis=1)
    if negatives is not None:
        x, y = (side.astype(np.float64) for side in negatives)
    logits = scale * (x @ y.T)
    np.fill_diagonal(logits, scale * positives)
    weights = -2.0 * np.eye(batch)
    loss = -logits.trace() / batch
    for axis in (0, 1):
        top = logits.max(axis, keepdims=True)
        total = top + np.log(np.exp(logits - top).sum(axis, keepdims=True))
        weights += np.exp(logits - total)
        loss += total.mean() / 2
    weights /= 2 * batch
    return loss, scale * weights @ y, scale * weights.T @ x, np.sum(weights * logits)


# --- TPU, compiled ahead of time -----------------------------------------------------------------

LAYOUTS = ("dense", "open_clip", "gather", "grid", "ring")
TPU_CASES = {
    "32k": ("v5e:4x4", 2**15, 512, LAYOUTS),
    "128k": ("v5e:4x4", 2**17, 768, LAYOUTS),
    "1M": ("v5e:16x16", 2**20, 768, LAYOUTS),
    "1M-4096": ("v5p:16x16x16", 2**20, 768, ("gather", "grid", "ring")),
}
# v5e and v5p keep small buffers in on-chip VMEM, which temp_size does not count. With the
# placement off every buffer is in HBM, so temp_size is the whole of what is live at the peak.
ALL_IN_HBM = {"xla_vf_vmem_memory_space_assignment": False}
# libtpu looks for the host it would run on; here it is a compiler only.
TPU_ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-16",
    "TPU_WORKER_HOSTNAMES": "localhost",
}


def tpu_table(cases: list[str]) -> None:
    for key, value in TPU_ENVIRONMENT.items():
        os.environ.setdefault(key, value)
    print("\n".join(setting_lines("jax", "jaxlib", "libtpu")))
    print("- compile-time: bfloat16 embeddings sharded over one axis of all devices, forward +")
    print("  backward; nothing was run on a TPU; figures are for one device")
    print("- peak MB: temporaries with VMEM placement off, so that every live buffer is counted;")
    print("  temp MB: what memory_analysis reports for the default compilation (HBM only)")
    print("- FLOPs: matrix products, loop trip counts multiplied in; bytes: collectives, upper")
    print("  bound (benchmarks/loss_hlo.py); sec: time to compile once on this host\n")
    print(
        "| topology | batch | embed | loss | layout | peak MB | temp MB | FLOPs / (8B²D/N) ", end=""
    )
    print("| bytes MB | bytes / (12BD/√N) | sec |")
    print("|---|---|---|---|---|---|---|---|---|---|---|")
    for case in cases:
        topology, batch, embed, layouts = TPU_CASES[case]
        runs = [("clip", layout) for layout in layouts]
        runs += [("siglip", layout) for layout in ("grid", "ring") if layout in layouts]
        for name, layout in runs:
            print(f"| {topology} | {batch} | {embed} | {name} | {layout} ", end="")
            print(tpu_row(topology, batch, embed, name, layout), flush=True)


def tpu_row(topology: str, batch: int, embed: int, name: str, layout: str) -> str:
    try:
        start = time.perf_counter()
        lowered, num_devices = lower(topology, batch, embed, name, layout)
        compiled = lowered.compile()
        seconds = time.perf_counter() - start
        peak = lowered.compile(compiler_options=ALL_IN_HBM).memory_analysis().temp_size_in_bytes
    except Exception as error:
        used = re.search(
            r"(?:Used |temporaries \()([\d.]+\w)\)?.*?([\d.]+\w)(?: hbm|\))", str(error)
        )
        if not used:
            raise
        return f"| out of memory: {used[1]} of {used[2]} | | | | | |"
    temp = compiled.memory_analysis().temp_size_in_bytes
    flops, traffic = costs(compiled.as_text())
    total = sum(traffic.values())
    analytic, formula = 8 * batch**2 * embed / num_devices, 12 * batch * embed / num_devices**0.5
    return (
        f"| {peak / 1e6:.1f} | {temp / 1e6:.1f} | {flops / analytic:.3f} "
        f"| {total / 1e6:.1f} | {total / formula:.3f} | {seconds:.1f} |"
    )


def lower(topology: str, batch: int, embed: int, name: str, layout: str):
    """Lower value and gradient of one loss for a TPU topology that is not there."""
    import jax
    import jax.numpy as jnp
    from jax.experimental import topologies
    from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

    from clipjax.losses import make_loss

    devices = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
    mesh = Mesh(np.array(devices), ("data",), axis_types=(AxisType.Auto,))
    sharded = NamedSharding(mesh, PartitionSpec("data"))
    replicated = NamedSharding(mesh, PartitionSpec())
    embeds = jax.ShapeDtypeStruct((batch, embed), jnp.bfloat16, sharding=sharded)
    scalar = jax.ShapeDtypeStruct((), jnp.float32, sharding=replicated)
    if layout == "open_clip":
        loss_fn = open_clip_style(mesh)
    else:
        loss_fn = make_loss(name, mesh=mesh, layout=layout)
    step = jax.value_and_grad(loss_fn, (0, 1, 2, 3), has_aux=True)
    out = ((replicated, replicated), (sharded, sharded, replicated, replicated))
    return jax.jit(step, out_shardings=out).lower(embeds, embeds, scalar, scalar), len(devices)


def open_clip_style(mesh):
    """open_clip with --local-loss --gather-with-grad: logits [batch / N, batch], twice."""
    import jax
    import jax.numpy as jnp
    from jax import lax
    from jax.sharding import PartitionSpec

    def local(image, text, logit_scale):
        length = image.shape[0]
        everything = [lax.all_gather(x, "data", axis=0, tiled=True) for x in (image, text)]
        labels = lax.axis_index("data") * length + jnp.arange(length)

        def one_way(rows, columns):
            logits = jnp.exp(logit_scale) * jnp.dot(
                rows, columns.T, preferred_element_type=jnp.float32
            )
            positives = jnp.take_along_axis(logits, labels[:, None], axis=1)[:, 0]
            return jnp.mean(jax.nn.logsumexp(logits, axis=1) - positives)

        loss = (one_way(image, everything[1]) + one_way(text, everything[0])) / 2
        return lax.pmean(loss, "data")

    spec = PartitionSpec("data")
    sharded = jax.shard_map(
        local, mesh=mesh, in_specs=(spec, spec, PartitionSpec()), out_specs=PartitionSpec()
    )
    return lambda image, text, logit_scale, logit_bias: (sharded(image, text, logit_scale), {})


if __name__ == "__main__":
    main()
