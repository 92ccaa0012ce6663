"""Writes the HLO texts beside it: small programs, compiled by libtpu for absent v5es.

python tests/golden/plan/make_hlo.py        needs the extra [tpu]; no TPU
"""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from clipjax.partitioning import make_mesh
from clipjax.plan import make_topology


def main():
    one_slice()
    two_slices()


def two_slices():
    """A gradient is summed to shares, what they update is gathered, over two slices of four."""
    mesh = make_mesh({"data": -1}, make_topology("v5e:2x2x2slices").devices)
    whole, share = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in ((), ("data",)))

    def update(moment, x):
        gradient = jax.lax.with_sharding_constraint(x.T @ x, share)
        moment = 0.9 * moment + gradient.astype(jnp.float32)
        return moment.astype(jnp.bfloat16), moment

    moment = jax.ShapeDtypeStruct((1024, 1024), jnp.float32, sharding=share)
    x = jax.ShapeDtypeStruct((256, 1024), jnp.bfloat16, sharding=share)
    function = jax.jit(update, out_shardings=(whole, share))
    write("slices_v5e_2x2x2slices", mesh, function, moment, x)


def one_slice():
    devices = make_topology("v5e:4x4").devices
    mesh = jax.make_mesh((4, 4), ("data", "fsdp"), devices=devices, axis_types=(AxisType.Auto,) * 2)

    def array(shape, *axes):
        sharding = NamedSharding(mesh, PartitionSpec(*axes))
        return jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=sharding)

    def loss(weights, x):
        def body(x, weight):
            return jnp.tanh(x @ weight), None

        body = jax.checkpoint(body, policy=jax.checkpoint_policies.nothing_saveable)
        return jnp.mean(jax.lax.scan(body, x, weights)[0].astype(jnp.float32) ** 2)

    weights, x = array((6, 1024, 1024), None, "fsdp"), array((2048, 1024), ("data", "fsdp"))
    out = (NamedSharding(mesh, PartitionSpec()), weights.sharding)
    write(
        "fsdp_scan_v5e_4x4", mesh, jax.jit(jax.value_and_grad(loss), out_shardings=out), weights, x
    )

    def exchange(x, weight, other):
        split, by_column = PartitionSpec("data"), PartitionSpec(None, "data")

        def product(x, weight):
            return jax.lax.psum_scatter(jnp.sin(weight @ x), "data", tiled=True)

        def shift(x):
            return jax.lax.ppermute(x, "data", [(i, (i + 1) % 4) for i in range(4)])

        f = jax.shard_map(product, mesh=mesh, in_specs=(split, by_column), out_specs=split)
        g = jax.shard_map(shift, mesh=mesh, in_specs=split, out_specs=split)
        return f(x, weight) + g(other)

    x, weight = array((1024, 256), "data"), array((1024, 1024), None, "data")
    write("exchange_v5e_4x4", mesh, jax.jit(exchange), x, weight, x)


def write(name, mesh, function, *arguments):
    with jax.set_mesh(mesh):
        text = function.lower(*arguments).compile().as_text()
    lines = (re.sub(r", backend_config=.*", "", line) for line in text.splitlines())
    lines = (re.sub(r" stack_frame_id=\d+", "", line) for line in lines)
    # Tables of source lines, which nobody reads.
    kept = [line for line in lines if line.startswith(("HloModule", "%", "ENTRY", "  ", "}"))]
    Path(__file__).with_name(f"{name}.hlo").write_text("\n".join(kept) + "\n")


if __name__ == "__main__":
    main()
