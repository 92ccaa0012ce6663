"""Two towers of flax's own layers, whose automatic names are those of big_vision's files.

An independent reference: nothing of clipjax is in it, and the names come from flax.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

WIDTH, HEADS, MLP, DEPTH, VOCAB, LENGTH, PATCH = 16, 2, 40, 3, 30, 6, 4
IMAGE_SIZE = 12


class MlpBlock(nn.Module):
    @nn.compact
    def __call__(self, x):
        hidden = nn.gelu(nn.Dense(MLP)(x), approximate=True)
        return nn.Dense(x.shape[-1])(hidden)


class Block(nn.Module):
    @nn.compact
    def __call__(self, x, mask):
        y = nn.LayerNorm(epsilon=1e-6)(x)
        x = x + nn.MultiHeadDotProductAttention(num_heads=HEADS)(y, y, mask=mask)
        y = nn.LayerNorm(epsilon=1e-6)(x)
        return x + MlpBlock()(y), None


def blocks(x, scan, mask=None):
    if not scan:
        for i in range(DEPTH):
            x, _ = Block(name=f"encoderblock_{i}")(x, mask)
        return x
    stacked = nn.scan(
        Block,
        variable_axes={"params": 0},
        split_rngs={"params": True},
        in_axes=nn.broadcast,
        length=DEPTH,
    )
    return stacked(name="encoderblock")(x, mask)[0]


def encoder_norm(x):
    return nn.LayerNorm(epsilon=1e-6, name="encoder_norm")(x)


class Encoder(nn.Module):
    scan: bool
    norm: bool = True

    @nn.compact
    def __call__(self, x, mask=None):
        x = blocks(x, self.scan, mask)
        return encoder_norm(x) if self.norm else x


class MAPHead(nn.Module):
    @nn.compact
    def __call__(self, x, mask=None):
        probe = self.param("probe", nn.initializers.zeros, (1, 1, WIDTH))
        probe = jnp.tile(probe, (x.shape[0], 1, 1))
        y = nn.MultiHeadDotProductAttention(num_heads=HEADS)(probe, x, mask=mask)
        return (y + MlpBlock()(nn.LayerNorm(epsilon=1e-6)(y)))[:, 0]


class SiglipImage(nn.Module):
    scan: bool

    @nn.compact
    def __call__(self, images):
        size = (PATCH, PATCH)
        x = nn.Conv(WIDTH, size, strides=size, padding="VALID", name="embedding")(images)
        x = x.reshape(x.shape[0], -1, WIDTH)
        x = x + self.param("pos_embedding", nn.initializers.zeros, (1, *x.shape[1:]))
        return MAPHead()(Encoder(self.scan, name="Transformer")(x))


class NaflexImage(nn.Module):
    """Takes images of one size, as patches; the table has the images' own grid."""

    scan: bool

    @nn.compact
    def __call__(self, images):
        grid = IMAGE_SIZE // PATCH
        x = images.reshape(-1, grid, PATCH, grid, PATCH, 3).swapaxes(2, 3)
        x = nn.Dense(WIDTH, name="embedding")(x.reshape(-1, grid * grid, PATCH * PATCH * 3))
        table = self.param("pos_embedding", nn.initializers.zeros, (grid, grid, WIDTH))
        return MAPHead()(Encoder(self.scan, name="Transformer")(x + table.reshape(-1, WIDTH)))


class SiglipText(nn.Module):
    scan: bool

    @nn.compact
    def __call__(self, tokens):
        x = nn.Embed(VOCAB, WIDTH)(tokens)
        x = x + self.param("pos_embedding", nn.initializers.zeros, (1, LENGTH, WIDTH))
        x = Encoder(self.scan)(x)
        return nn.Dense(WIDTH, name="head")(x[:, -1])


def sincos(grid, width):
    """[1 + grid^2, width]: zeros for the class token, then by column and by row."""
    frequencies = 10_000.0 ** -np.linspace(0, 1, width // 4)
    rows, columns = np.divmod(np.arange(grid * grid), grid)
    parts = [f(p[:, None] * frequencies) for p in (columns, rows) for f in (np.sin, np.cos)]
    return np.pad(np.concatenate(parts, axis=1), ((1, 0), (0, 0))).astype(np.float32)


class ClipaImage(nn.Module):
    scan: bool

    @nn.compact
    def __call__(self, images):
        size = (PATCH, PATCH)
        embedding = nn.Conv(
            WIDTH, size, strides=size, padding="VALID", use_bias=False, name="embedding"
        )
        x = embedding(images)
        grid = x.shape[1]
        x = x.reshape(x.shape[0], -1, WIDTH)
        first = self.param("cls", nn.initializers.zeros, (1, 1, WIDTH))
        x = jnp.concatenate([jnp.tile(first, (x.shape[0], 1, 1)), x], axis=1)
        x = Encoder(self.scan, norm=False, name="Transformer")(x + sincos(grid, WIDTH))
        return nn.Dense(WIDTH, use_bias=False, name="head")(encoder_norm(x[:, 1:].mean(axis=1)))


class ClipaText(nn.Module):
    scan: bool

    @nn.compact
    def __call__(self, tokens):
        x = nn.Embed(VOCAB, WIDTH)(tokens)
        x = x + self.param("pos_embedding", nn.initializers.zeros, (1, LENGTH, WIDTH))
        x = encoder_norm(Encoder(self.scan, norm=False, name="Transformer")(x))
        return nn.Dense(WIDTH, use_bias=False, name="head")(x[:, -1])


class TwoTowers(nn.Module):
    family: str
    scan: bool = False

    @nn.compact
    def __call__(self, images, tokens):
        towers = {
            "siglip": (SiglipImage, SiglipText),
            "naflex": (NaflexImage, SiglipText),
            "clipa": (ClipaImage, ClipaText),
        }
        image, text = towers[self.family]
        zimg, ztxt = image(self.scan, name="img")(images), text(self.scan, name="txt")(tokens)
        self.param("t", nn.initializers.zeros, (1,))
        if self.family != "clipa":
            self.param("b", nn.initializers.zeros, (1,))
        length = [jnp.linalg.norm(z, axis=1, keepdims=True) + 1e-8 for z in (zimg, ztxt)]
        return zimg / length[0], ztxt / length[1]


def inputs():
    random = np.random.RandomState(1)
    images = random.standard_normal((3, IMAGE_SIZE, IMAGE_SIZE, 3)).astype(np.float32)
    return images, random.randint(0, VOCAB, (3, LENGTH)).astype(np.int32)


def noise(params):
    """Parameters far from any initial value, of the shapes given."""
    random = np.random.RandomState(0)

    def draw(path, leaf):
        value = random.standard_normal(leaf.shape).astype(np.float32)
        name = path[-1].key
        if name == "scale":
            return 1 + 0.2 * value
        if name == "kernel":
            return value * np.float32(np.prod(leaf.shape[-3:-1]) ** -0.5)
        return 0.3 * value

    return jax.tree_util.tree_map_with_path(draw, params)


def reference(family, scan):
    """(parameters by name, image embeddings, text embeddings)"""
    model = TwoTowers(family, scan)
    shapes = jax.eval_shape(model.init, jax.random.key(0), *inputs())["params"]
    params = noise(shapes)
    embeds = jax.jit(model.apply)({"params": params}, *inputs())
    leaves = jax.tree_util.tree_leaves_with_path(params)
    named = {"/".join(key.key for key in path): value for path, value in leaves}
    return named, *jax.device_get(embeds)
