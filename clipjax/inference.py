"""Using a trained model on one's own pictures and texts; a checkpoint is all it takes."""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from PIL import Image

from clipjax.array_types import PyTree
from clipjax.checkpoint import (
    check_contract,
    load_variables,
    read_manifest,
    resolve_checkpoint,
    spec_of_contract,
)
from clipjax.data.preprocess import Preprocess
from clipjax.evals.encoding import EncodeFn, RowLayout, embed_fn, make_encode_fns, place_params
from clipjax.evals.templates import fill_template, load_templates
from clipjax.models import build_model
from clipjax.models.layers_layout import stack_layers
from clipjax.partitioning import make_mesh, num_batch_shards
from clipjax.tokenizers import Tokenizer, make_tokenizer

__all__ = ["Encoder", "ImageLike", "bucket_size"]

# A path, encoded bytes, a Pillow image, or a uint8 array [height, width, 3 or 4].
ImageLike = str | os.PathLike[str] | bytes | Image.Image | np.ndarray


def bucket_size(num_rows: int, shards: int, max_batch: int) -> int:
    """Rounds a number of rows up to `shards` times a power of two, so that few sizes compile.

    Args:
        num_rows: rows to encode, at least 1.
        shards: devices that share the rows.
        max_batch: a bucket that reaches it is the largest.

    Returns:
        Rows of the padded batch; fewer than `num_rows` if several batches are needed.
    """
    size = shards
    while size < min(num_rows, max_batch):
        size *= 2
    return size


class Encoder:
    """Embeds images and texts, and classifies images by label texts.

    Args:
        spec: a whole model spec, as a row of `clipjax.models.zoo.MODELS`.
        params: the model's parameters; or its variables, `{"params": ..., "batch_stats": ...}`.
        tokenizer: the model's tokenizer; made from the spec if None.
        mesh: devices that share a batch; this process's first device if None.
        batch_size: most rows that are encoded at once.
        dtype: of the computation.

    Attributes:
        spec: the model spec.
        params: the variables, on the mesh.
        tokenizer: texts -> int32 `[batch, length]`.
        preprocess: image -> uint8 `[size, size, 3]`.
        encode_fns: the pure functions, as evals take them.
        mesh: the devices.
    """

    def __init__(
        self,
        spec: Mapping[str, Any],
        params: PyTree,
        *,
        tokenizer: Tokenizer | None = None,
        mesh: Mesh | None = None,
        batch_size: int = 256,
        dtype: str = "float32",
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; it has to be at least 1")
        self.spec = dict(spec)
        single = {"data": 1, "fsdp": 1, "tensor": 1}
        self.mesh = make_mesh(single, jax.local_devices()[:1]) if mesh is None else mesh
        self.params = place_params(params, self.mesh)
        self.tokenizer = tokenizer or make_tokenizer(
            spec["tokenizer"], context_length=spec["text"]["context_length"]
        )
        preprocess = spec["preprocess"]
        self.preprocess = Preprocess(
            spec["image_size"],
            resize=preprocess["resize"],
            interpolation=preprocess["interpolation"],
        )
        model = build_model(spec, dtype=dtype)
        self.encode_fns = make_encode_fns(model, preprocess, dtype=dtype)
        self._batch_size = batch_size

    @classmethod
    def from_checkpoint(cls, path: str | os.PathLike[str], **options: Any) -> "Encoder":
        """Builds the encoder that a checkpoint describes.

        Args:
            path: a workdir, its `checkpoints` folder, or one step's folder.
            **options: mesh, batch_size, dtype; see the class.

        Raises:
            ValueError: there is no checkpoint, or this clipjax's tokenizer is not the one that
                the checkpoint was trained with.
            DamagedCheckpointError: the checkpoint is not what was written.
        """
        step_dir = resolve_checkpoint(path)
        contract = read_manifest(step_dir).contract
        spec = spec_of_contract(contract)
        tokenizer = make_tokenizer(spec["tokenizer"], context_length=spec["text"]["context_length"])
        # The spec only names the tokenizer; its vocabulary could have changed since.
        check_contract({"tokenizer": contract["tokenizer"]}, {"tokenizer": tokenizer.contract()})
        # Stacked is how the model is built here, however it was trained.
        params = load_variables(step_dir, stack_layers)
        return cls(spec, params, tokenizer=tokenizer, **options)

    def encode_image(self, images: Iterable[ImageLike]) -> np.ndarray:
        """Embeds images.

        Args:
            images: paths, encoded bytes, Pillow images or uint8 arrays `[height, width, 3 or 4]`,
                mixed as you like.

        Returns:
            `[n, embed]`, float32, rows of length 1.

        Raises:
            ValueError: a file is missing or an image does not decode; the message names it.
        """
        if isinstance(images, (str, bytes, os.PathLike, Image.Image)):
            raise ValueError("encode_image takes a list of images; put the one image in a list")
        with ThreadPoolExecutor(max_workers=4) as pool:

            def read(chunk: list[tuple[int, ImageLike]]) -> np.ndarray:
                return np.stack(list(pool.map(self._read, *zip(*chunk, strict=True))))

            return self._encode(self.encode_fns.image, list(enumerate(images)), read)

    def encode_text(self, texts: Sequence[str]) -> np.ndarray:
        """Embeds texts.

        Args:
            texts: n strings.

        Returns:
            `[n, embed]`, float32, rows of length 1.

        Raises:
            ValueError: a single string, or an entry that is no string.
        """
        if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
            raise ValueError(f"encode_text takes a list of strings, not {texts!r:.80}")
        return self._encode(self.encode_fns.text, list(texts), self.tokenizer)

    def classify(
        self,
        images: Iterable[ImageLike],
        labels: Sequence[str],
        templates: str | Sequence[str] = "simple",
    ) -> list[list[tuple[str, float]]]:
        """Ranks labels for each image.

        p = softmax(s <image, label>), s the learned scale; for a model with a learned bias b
        (SigLIP) p = sigmoid(s <image, label> + b), where each label is a question of its own.

        Args:
            images: as for `encode_image`.
            labels: different, non-empty names.
            templates: a name, a file or a list of templates; their embeddings are averaged.

        Returns:
            For each image all labels with their probabilities, the most probable first.

        Raises:
            ValueError: no labels, an empty one, or one given twice.

        Reference: arXiv:2103.00020, section 3.1; arXiv:2303.15343 for the sigmoid.
        """
        labels = [labels] if isinstance(labels, str) else list(labels)
        odd = [label for label in labels if not label.strip() or labels.count(label) > 1]
        if odd or not labels:
            raise ValueError(
                f"the labels {labels} are not usable ({odd or 'none'}); "
                "give one or more, each different and not empty"
            )
        cosines = self.encode_image(images) @ self.classifier(labels, templates).T
        weights = self.params.get("params", self.params)
        logits = np.exp(np.float32(jax.device_get(weights["logit_scale"]))) * cosines
        if "logit_bias" in weights:
            bias = jax.device_get(weights["logit_bias"])
            probabilities = 1 / (1 + np.exp(-(logits + bias)))
        else:
            exps = np.exp(logits - logits.max(axis=1, keepdims=True, initial=-np.inf))
            probabilities = exps / exps.sum(axis=1, keepdims=True)
        order = np.argsort(-logits, axis=1, kind="stable")
        return [
            [(labels[c], float(row[c])) for c in ranks]
            for row, ranks in zip(probabilities, order, strict=True)
        ]

    def classifier(
        self, labels: Sequence[str], templates: str | Sequence[str] = "simple"
    ) -> np.ndarray:
        """Embeds labels, averaged over templates as in `clipjax.evals`: `[labels, embed]`."""
        templates = load_templates(templates)
        texts = [fill_template(template, label) for label in labels for template in templates]
        embeds = self.encode_text(texts).reshape(len(labels), len(templates), -1).mean(axis=1)
        return embeds / np.linalg.norm(embeds, axis=1, keepdims=True)

    def _encode(
        self, encode_fn: EncodeFn, items: list[Any], read: Callable[[list[Any]], np.ndarray]
    ) -> np.ndarray:
        shards = num_batch_shards(self.mesh)
        bucket = bucket_size(len(items), shards, self._batch_size)
        embed = embed_fn(encode_fn, self.mesh)
        found = []
        for start in range(0, len(items), bucket):
            rows = np.asarray(read(items[start : start + bucket]))
            layout = RowLayout(self.mesh, bucket_size(len(rows), shards, bucket), bucket)
            # Padding repeats a real row, so that it is finite in any model.
            padded = rows[np.minimum(np.arange(layout.batch_size), len(rows) - 1)]
            found.append(jax.device_get(embed(self.params, layout.to_device(padded)))[: len(rows)])
        return np.concatenate(found) if found else np.zeros((0, self.spec["embed_dim"]), np.float32)

    def _read(self, number: int, image: ImageLike) -> np.ndarray:
        name = f"image {number}"
        try:
            if isinstance(image, (str, os.PathLike)):
                name = os.fspath(image)
                image = Path(image).read_bytes()
            return self.preprocess(image)
        except (ValueError, OSError) as error:
            raise ValueError(f"{name} cannot be used: {error}") from error
