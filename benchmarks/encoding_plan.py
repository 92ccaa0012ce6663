"""What embeddings cost on devices that are absent: with the platform's attention, and with XLA's.

    python benchmarks/encoding_plan.py                     needs the extra [tpu]; no TPU
    python benchmarks/encoding_plan.py --topology h100:1   needs [cuda] or [cuda12]; no GPU

Compiled, and counted as `clipjax plan` counts a step: HBM traffic and memory of one device, a
batch of one side. Nothing runs, and no speed is claimed.
"""

import argparse
import sys
from pathlib import Path

if __name__ == "__main__" and not __package__:  # a file: the checkout in place of its folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import jax

from benchmarks.common import setting_lines
from benchmarks.plan import COMPILERS, GIB
from clipjax.encoding.compiled import EmbedFn
from clipjax.encoding.encode_fns import make_encode_fns
from clipjax.experiment.compiled_memory import read_memory
from clipjax.interop.shapes import stacked_shapes
from clipjax.layers.execution import Execution
from clipjax.models import MODELS, build_model
from clipjax.partitioning import batch_sharding, make_mesh, replicated
from clipjax.plan import gpu
from clipjax.plan.hlo import parse, walk
from clipjax.plan.topology import Topology, make_topology
from clipjax.plan.traffic import count_traffic
from clipjax.platforms import platform_of
from clipjax.trees import unflatten_names

# model, side, rows of a device, tokens of a text: captions are cut to 16 or 24 mostly
CASES = (
    ("ViT-B-32", "image", 1024, None),
    ("ViT-B-16", "image", 256, None),
    ("ViT-L-14", "image", 256, None),
    ("siglip-so400m-14-384", "image", 64, None),
    ("ViT-B-16", "text", 1024, 16),
    ("ViT-B-16", "text", 1024, 24),
    ("ViT-B-16", "text", 1024, 77),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--topology", default="v5e:2x2")
    topology = make_topology(parser.parse_args().topology)
    print("\n".join(setting_lines("jax", *COMPILERS)))
    print(f"- compiled for {topology.name}, bfloat16; nothing ran\n")
    print("| model, side | rows | HBM traffic GB: xla | auto | auto / xla | GiB: xla | auto |")
    print(f"|{'---|' * 7}")
    for case in CASES:
        (plain, before), (own, after) = (cost(topology, *case, way) for way in ("xla", "auto"))
        name, side, rows, length = case
        side = f"{side} of {length} tokens" if length else side
        cells = [f"{name}, {side}", rows, f"{plain:.1f}", f"{own:.1f}", f"{own / plain:.2f}"]
        print(f"| {' | '.join(map(str, [*cells, f'{before:.2f}', f'{after:.2f}']))} |", flush=True)


def cost(
    topology: Topology, name: str, side: str, rows: int, length: int | None, attention: str
) -> tuple[float, float]:
    """GB through HBM and GiB of memory, of one device."""
    spec, devices = MODELS[name], topology.devices
    mesh = make_mesh({"data": len(devices)}, devices)
    fns = make_encode_fns(
        build_model(spec, dtype="bfloat16", execution=Execution(attention=attention)),
        spec["preprocess"],
        dtype="bfloat16",
        platform=platform_of(mesh),
    )
    size = spec["image_size"]
    shape, dtype = ((length,), "int32") if length else ((size, size, 3), "uint8")
    batch = jax.ShapeDtypeStruct(
        (rows * len(devices), *shape), dtype, sharding=batch_sharding(mesh)
    )
    variables = unflatten_names(
        {
            name: jax.ShapeDtypeStruct(shape, "float32", sharding=replicated(mesh))
            for name, shape in stacked_shapes(spec).items()
        }
    )
    with gpu.answering_for(topology.chip):
        lowered = EmbedFn(getattr(fns, side), mesh).trace(variables, batch).lower()
    compiled = lowered.compile(gpu.COMPILER_OPTIONS if topology.chip.is_gpu else None)
    module, memory = parse(compiled.as_text()), read_memory(compiled.memory_analysis())
    return count_traffic(module, walk(module)).hbm / 1e9, memory.total / GIB


if __name__ == "__main__":
    main()
