"""The encoder: embeddings, tokens and probabilities of images and texts."""

import functools
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
from absl import logging
from jax.sharding import Mesh
from PIL import Image

from clipjax.array_types import Patches, PyTree
from clipjax.building import check_plugins
from clipjax.checkpoint import (
    check_model,
    load_tokenizer,
    load_variables,
    read_manifest,
    resolve_checkpoint,
    spec_in,
)
from clipjax.data.images.naflex import make_preprocess
from clipjax.data.storage.files import local_path
from clipjax.encoding.batches import embed_fn, make_encode_fns, place_params
from clipjax.encoding.buckets import RunFn, run_in_buckets
from clipjax.encoding.prompts import Prompts, choose_prompts, prompts_of_run, warn_of_articles
from clipjax.encoding.templates import fill_templates
from clipjax.inference.tokens import (
    check_final_norm,
    count_layers,
    layer_number,
    make_tokens_fn,
)
from clipjax.models import build_model
from clipjax.models.layers_layout import stack_layers
from clipjax.partitioning import batch_sharding, make_mesh
from clipjax.tokenizers import Tokenizer, make_tokenizer

# A path, encoded bytes, a Pillow image, or a uint8 array [height, width, 3 or 4].
ImageLike = str | os.PathLike[str] | bytes | Image.Image | np.ndarray


class Encoder:
    """Embeds images and texts, and classifies images by label texts.

    Args:
        spec: a whole model spec, as a row of `clipjax.models.zoo.MODELS`.
        params: the model's parameters; or its variables, `{"params": ..., "batch_stats": ...}`.
        tokenizer: the model's tokenizer; made from the spec if None.
        mesh: devices that share a batch; this process's first device if None.
        batch_size: most rows that are encoded at once.
        dtype: of the computation.
        preprocess: whose pixels, `clipjax` or `open_clip`, see `make_preprocess`.
        run_prompts: those that the run evaluated with, or what finds them; see `classify`.
        plugins: modules of yours that the spec may name, `("my_lab.towers",)`.

    Attributes:
        spec: the model spec.
        params: the variables, on the mesh.
        tokenizer: texts -> int32 `[batch, length]`.
        preprocess: image -> uint8 `[size, size, 3]`, or Patches for a model of any aspect.
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
        preprocess: str = "clipjax",
        run_prompts: Callable[[], Prompts | None] = lambda: None,
        plugins: Sequence[str] = (),
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; it has to be at least 1")
        self.spec = dict(spec)
        single = {"data": 1, "fsdp": 1, "tensor": 1}
        self.mesh = make_mesh(single, jax.local_devices()[:1]) if mesh is None else mesh
        self.params = place_params(params, self.mesh)
        self.tokenizer = tokenizer or make_tokenizer(
            spec["tokenizer"], context_length=spec["text"]["context_length"], plugins=plugins
        )
        self.pixels = preprocess
        self.preprocess = make_preprocess(spec, preprocess)
        self._run_prompts = run_prompts
        self._model = build_model(spec, dtype=dtype, plugins=plugins)
        self._dtype = dtype
        self.encode_fns = make_encode_fns(self._model, spec["preprocess"], dtype=dtype)
        self._batch_size = batch_size
        self._tokens_fns: dict[tuple[Any, ...], RunFn] = {}

    @classmethod
    def from_checkpoint(
        cls,
        path: str | os.PathLike[str],
        *,
        plugins: Sequence[str] = (),
        tokenizer: str | os.PathLike[str] | None = None,
        **options: Any,
    ) -> "Encoder":
        """Builds the encoder that a checkpoint describes.

        Args:
            path: a workdir, its `checkpoints` folder, or one step's folder.
            plugins: modules of yours that the checkpoint may name; it has no other imported.
            tokenizer: file of its vocabulary, for a checkpoint that has none inside.
            **options: mesh, batch_size, dtype, preprocess; see the class.

        Raises:
            ValueError: there is no checkpoint, or this clipjax's tokenizer is not the one that
                the checkpoint was trained with.
            DamagedCheckpointError: the checkpoint is not what was written.
        """
        step_dir = resolve_checkpoint(path)
        plugins = check_plugins(plugins, path="plugins")
        manifest = read_manifest(step_dir)
        trusted = {"plugins": plugins, "tokenizer": tokenizer}
        spec = spec_in(step_dir, manifest.contract, **trusted)
        check_model(step_dir, manifest, spec, plugins=plugins)
        made = load_tokenizer(step_dir, **trusted)
        # Stacked is how the model is built here, however it was trained.
        params = load_variables(step_dir, stack_layers)
        run_prompts = functools.partial(prompts_of_run, manifest.config, step_dir)
        return cls(
            spec, params, tokenizer=made, run_prompts=run_prompts, plugins=plugins, **options
        )

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
        run = embed_fn(self.encode_fns.image, self.mesh)
        return self._run_images(run, images, "encode_image")

    def encode_text(self, texts: Sequence[str]) -> np.ndarray:
        """Embeds texts.

        Args:
            texts: n strings.

        Returns:
            `[n, embed]`, float32, rows of length 1.

        Raises:
            ValueError: a single string, or an entry that is no string.
        """
        run = embed_fn(self.encode_fns.text, self.mesh)
        return self._run_texts(run, texts, "encode_text")

    def image_tokens(
        self, images: Iterable[ImageLike], layer: int | None = None, *, final_norm: bool = False
    ) -> np.ndarray:
        """Gives the image tower's tokens, as vision-language models take them.

        With a class token it comes first and the patches follow row by row: `tokens[:, 1:]` are
        the patches (LLaVA takes those of layer -2). Models without one (SigLIP) give patches only.

        Args:
            images: as for `encode_image`.
            layer: None for the last tokens, those that the tower pools (SigLIP: after the final
                norm, OpenAI's: before it); else the output of a block, 1 to the depth, or -1 for
                the last and -2 for the last but one, as `hidden_states` of transformers counts.
                For a ResNet the output of a stage, its map row by row. Rows beyond the patches of
                an image (models of any aspect) are zeros.
            final_norm: apply the tower's final layer norm to that layer.

        Returns:
            `[n, positions, width]`, float32.

        Raises:
            ValueError: no such layer, a tower without a final norm, or a bad image.
        """
        run = self._tokens_fn("image", layer, final_norm)
        return self._run_images(run, images, "image_tokens")

    def text_tokens(
        self, texts: Sequence[str], layer: int | None = None, *, final_norm: bool = False
    ) -> np.ndarray:
        """Gives the text tower's tokens, padding included, as diffusion models take them.

        Args:
            texts: n strings.
            layer: None for the last tokens, after the final norm; else as for `image_tokens`.
                Stable Diffusion 1 with "clip skip 2" is `layer=-2, final_norm=True`; Stable
                Diffusion XL is `layer=-2`.
            final_norm: apply the tower's final layer norm to that layer.

        Returns:
            `[n, length, width]`, float32.

        Raises:
            ValueError: no such layer, a tower without a final norm, or not a list of strings.
        """
        return self._run_texts(self._tokens_fn("text", layer, final_norm), texts, "text_tokens")

    def classify(
        self,
        images: Iterable[ImageLike],
        labels: Sequence[str],
        templates: str | Sequence[str] | Mapping[str, Sequence[str]] | None = None,
    ) -> list[list[tuple[str, float]]]:
        """Ranks labels for each image.

        p = softmax(s <image, label>), s the learned scale; for a model with a learned bias b
        (SigLIP) p = sigmoid(s <image, label> + b), where each label is a question of its own.

        Args:
            images: as for `encode_image`.
            labels: different, non-empty names.
            templates: a name, a file, a list of templates, or a map from label to prompts; their
                embeddings are averaged. By default those that the run evaluated with, which
                trained the model; `simple` where there was none.

        Returns:
            For each image all labels with their probabilities, the most probable first.

        Raises:
            ValueError: no labels, an empty one, or one given twice.

        Reference: arXiv:2103.00020, section 3.1; arXiv:2303.15343 for the sigmoid.
        """
        labels = [labels] if isinstance(labels, str) else list(labels)
        counts = Counter(labels)
        odd = [label for label in labels if not label.strip() or counts[label] > 1]
        if odd or not labels:
            raise ValueError(
                f"the labels {labels} are not usable ({odd or 'none'}); "
                "give one or more, each different and not empty"
            )
        prompts = self.prompts(templates)
        logging.info("templates: %s", prompts.origin)
        warn_of_articles(labels, prompts)
        cosines = self.encode_image(images) @ self.classifier(labels, prompts.templates).T
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

    def prompts(
        self, templates: str | Sequence[str] | Mapping[str, Sequence[str]] | None = None
    ) -> Prompts:
        """The templates that labels are put into, and where they are from; as for `classify`.

        Raises:
            ValueError: none are given, and the checkpoint names a file that it does not hold.
        """
        return choose_prompts(templates, run=None if templates is not None else self._run_prompts())

    def classifier(
        self,
        labels: Sequence[str],
        templates: str | Sequence[str] | Mapping[str, Sequence[str]] | None = None,
    ) -> np.ndarray:
        """Embeds labels, averaged over templates as in `clipjax.evals`: `[labels, embed]`."""
        chosen = self.prompts(templates)
        prompts = fill_templates(chosen.templates, labels)
        embeds = self.encode_text([text for of_label in prompts for text in of_label])
        ends = np.cumsum([len(of_label) for of_label in prompts])[:-1]
        embeds = np.stack([part.mean(axis=0) for part in np.split(embeds, ends)])
        return embeds / np.linalg.norm(embeds, axis=1, keepdims=True)

    def _tokens_fn(self, tower: str, layer: int | None, final_norm: bool) -> RunFn:
        key = (tower, layer, final_norm)
        if key not in self._tokens_fns:
            number = None
            if layer is not None:
                depth = count_layers(self._model, tower, self.params, self._blank(tower))
                number = layer_number(layer, depth, tower)
            if final_norm:
                check_final_norm(tower, number, self.params)
            tokens = make_tokens_fn(
                self._model,
                tower,
                number,
                final_norm=final_norm,
                preprocess=self.spec["preprocess"],
                dtype=self._dtype,
            )
            self._tokens_fns[key] = jax.jit(tokens, out_shardings=batch_sharding(self.mesh))
        return self._tokens_fns[key]

    def _blank(self, tower: str) -> np.ndarray | Patches:
        if tower == "text":
            return np.zeros(self.spec["text"]["context_length"], np.int32)
        return self.preprocess.blank()

    def _run_images(self, run: RunFn, images: Iterable[ImageLike], caller: str) -> np.ndarray:
        if isinstance(images, (str, bytes, os.PathLike, Image.Image)):
            raise ValueError(f"{caller} takes a list of images; put the one image in a list")
        with ThreadPoolExecutor(max_workers=4) as pool:

            def read(chunk: Sequence[tuple[int, ImageLike]]) -> np.ndarray | Patches:
                rows = list(pool.map(self._read, *zip(*chunk, strict=True)))
                return jax.tree.map(lambda *leaves: np.stack(leaves), *rows)

            return self._run(run, list(enumerate(images)), read, "image")

    def _run_texts(self, run: RunFn, texts: Sequence[str], caller: str) -> np.ndarray:
        if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
            raise ValueError(f"{caller} takes a list of strings, not {texts!r:.80}")
        return self._run(run, list(texts), self.tokenizer, "text")

    def _run(self, run: RunFn, items: list[Any], read: Any, tower: str) -> np.ndarray:
        return run_in_buckets(
            run,
            self.params,
            items,
            read,
            mesh=self.mesh,
            max_batch=self._batch_size,
            blank=self._blank(tower),
        )

    def _read(self, number: int, image: ImageLike) -> np.ndarray | Patches:
        name = f"image {number}"
        try:
            if isinstance(image, (str, os.PathLike)):
                name = os.fspath(image)
                image = local_path(image, way="download the picture first").read_bytes()
            return self.preprocess(image)
        except FileNotFoundError as error:
            raise ValueError(f"{name} cannot be used: there is no such file") from error
        except (ValueError, OSError) as error:
            raise ValueError(f"{name} cannot be used: {error}") from error
