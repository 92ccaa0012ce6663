"""Writes the HLO texts beside it that XLA's GPU compiler makes of small programs for absent H100s.

python tests/golden/plan/make_gpu_hlo.py        needs the extra [cuda] or [cuda12]; no GPU
"""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from clipjax.plan import make_topology
from clipjax.plan.gpu import COMPILER_OPTIONS, answering_for

HOSTS, LAYERS, BATCH, WIDTH = 2, 6, 512, 256


def main():
    topology = make_topology(f"h100:{HOSTS}x4")
    mesh = jax.make_mesh(
        (HOSTS, 4), ("data", "fsdp"), devices=topology.devices, axis_types=(AxisType.Auto,) * 2
    )

    def array(shape, *axes):
        sharding = NamedSharding(mesh, PartitionSpec(*axes))
        return jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=sharding)

    def scanned(weights, x):
        def body(x, weight):
            return jnp.tanh(x @ weight), None

        return jnp.mean(jax.lax.scan(body, x, weights)[0].astype(jnp.float32) ** 2)

    weights = array((LAYERS, WIDTH, WIDTH), None, "fsdp")
    x = array((BATCH, WIDTH), ("data", "fsdp"))
    gradient = jax.jit(jax.grad(scanned), out_shardings=weights.sharding)
    write("scan_h100_2x4", topology.chip, gradient, weights, x)

    def attention(q, k, v):
        mixed = jax.nn.dot_product_attention(q, k, v, implementation="cudnn")
        return mixed.astype(jnp.float32).sum()

    q = array((8, 200, 12, 64), ("data", "fsdp"))
    write("attention_h100_2x4", topology.chip, jax.jit(jax.grad(attention, (0, 1, 2))), q, q, q)

    def convolution(images, kernel):
        numbers = ("NHWC", "HWIO", "NHWC")
        y = jax.lax.conv_general_dilated(images, kernel, (2, 2), "VALID", dimension_numbers=numbers)
        return (y.astype(jnp.float32) ** 2).sum()

    images, kernel = array((8, 33, 33, 16), ("data", "fsdp")), array((3, 3, 16, 32))
    write(
        "convolution_h100_2x4",
        topology.chip,
        jax.jit(jax.grad(convolution, (0, 1))),
        images,
        kernel,
    )


def write(name, chip, function, *arguments):
    with answering_for(chip):
        lowered = function.lower(*arguments)
    text = lowered.compile(COMPILER_OPTIONS).as_text()
    # What a counter reads is kept: the configurations of calls and loops, and JAX's names.
    kept = []
    for line in text.splitlines():
        if not line.startswith(("HloModule", "%", "ENTRY", "  ", "}")):
            continue  # tables of source lines
        if not re.search(r" (custom-call|while)\(", line):
            line = re.sub(r", backend_config=.*", "", line)
        line = re.sub(r' (scheduling_name|deduplicated_name)="[^"]*"| stack_frame_id=\d+', "", line)
        line = re.sub(
            r', metadata=\{scheduling_name="[^"]*"\}|, control-predecessors=\{.*?\}', "", line
        )
        kept.append(re.sub(r"^(HloModule [^,]*),.*", r"\1", line))
    Path(__file__).with_name(f"{name}.hlo").write_text("\n".join(kept) + "\n")


if __name__ == "__main__":
    main()
