"""A trained model in one's own code: embeddings, tokens and zero-shot heads; its parts."""

import functools
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, overload

import jax
import numpy as np
from absl import logging
from jax.sharding import Mesh

from clipjax.array_types import Patches, PyTree
from clipjax.building import check_plugins
from clipjax.checkpoint import (
    Choice,
    check_model,
    load_tokenizer,
    load_variables,
    read_newest,
    spec_in,
)
from clipjax.data.images.naflex import make_preprocess
from clipjax.encoding.batches import put_on_mesh
from clipjax.encoding.compiled import CompiledFn, embed_fn
from clipjax.encoding.encode_fns import make_encode_fns, with_products
from clipjax.encoding.prompts import (
    Given,
    Prompts,
    choose_prompts,
    prompts_of_run,
    warn_of_articles,
)
from clipjax.encoding.zero_shot_head import average_prompts
from clipjax.inference.arguments import (
    OPTIONS,
    ImageLike,
    check_arguments,
    entries,
    own_mesh,
    strings,
)
from clipjax.inference.head import ZeroShotHead
from clipjax.inference.rows import RunFn, reading_images, run_rows
from clipjax.inference.tokens import (
    EncodeTokens,
    check_final_norm,
    count_layers,
    layer_number,
)
from clipjax.models import build_model
from clipjax.models.layers_layout import stack_layers
from clipjax.platforms import platform_of
from clipjax.tokenizers import Tokenizer, make_tokenizer


class Model:
    """A trained CLIP: embeds and classifies, and gives its parts to a loop of one's own.

    `clipjax.load` makes one of a file; the constructor takes the parts.

    Args:
        spec: a whole model spec, as a row of `clipjax.models.zoo.MODELS`.
        variables: `{"params": ...}`, and `"batch_stats"` of a model that has some; layers stacked.
        tokenizer: the model's tokenizer; made from the spec if None.
        mesh: devices that share a batch, of any axes; this process's first device if None.
        batch_size: most rows that are encoded at once.
        dtype: of the computation: `float32` or `bfloat16`.
        preprocess: whose pixels, `clipjax` or `open_clip`, see `make_preprocess`.
        run_prompts: those that the run evaluated with, or what finds them; see `classify`.
        plugins: modules of yours that the spec may name, `("my_lab.towers",)`.

    Attributes:
        spec: the model spec: sizes, towers, pixels, as plain data.
        module: the flax module of both towers.
        variables: its variables, on the mesh.
        tokenizer: n texts -> int32 `[n, length]`.
        preprocess: image -> uint8 `[size, size, 3]`, or Patches for a model of any aspect.
        encode_fns: the pure functions, as evals take them.
        mesh: the devices.
        batch_size: most rows that are encoded at once.
        dtype: of the computation.

    Raises:
        ValueError: variables without `params`, an option out of range, or a spec that is none.

    Example:
        >>> model = clipjax.load("ViT-B-32.pt")
        >>> model.spec["image_size"], sorted(model.variables)
        (224, ['params'])
        >>> pixels = model.preprocess(np.zeros((30, 40, 3), np.uint8))
        >>> pixels.shape, model.tokenizer(["a cat", "a dog"]).shape
        ((224, 224, 3), (2, 77))
    """

    def __init__(
        self,
        spec: Mapping[str, Any],
        variables: PyTree,
        *,
        tokenizer: Tokenizer | None = None,
        mesh: Mesh | None = None,
        batch_size: int = 256,
        dtype: str = "float32",
        preprocess: str = "clipjax",
        run_prompts: Callable[[], Prompts | None] = lambda: None,
        plugins: Sequence[str] = (),
    ) -> None:
        check_arguments(OPTIONS, batch_size=batch_size, dtype=dtype, preprocess=preprocess)
        if "params" not in variables:
            raise ValueError(
                f"variables holds {', '.join(list(variables)[:4])}, expected collections: "
                '{"params": ...}, and "batch_stats" for a model that has some'
            )
        self.spec = dict(spec)
        self.mesh = own_mesh(mesh)
        self.variables = put_on_mesh(variables, self.mesh)
        self.tokenizer = tokenizer or make_tokenizer(
            spec["tokenizer"], context_length=spec["text"]["context_length"], plugins=plugins
        )
        self.pixels = preprocess
        self.preprocess = make_preprocess(spec, preprocess)
        self.run_prompts = run_prompts
        self.module = build_model(spec, dtype=dtype, plugins=plugins)
        self.dtype = dtype
        self.encode_fns = make_encode_fns(
            self.module, spec["preprocess"], dtype=dtype, platform=platform_of(self.mesh)
        )
        self.batch_size = batch_size
        self._tokens_fns: dict[tuple[Any, ...], RunFn] = {}

    def __repr__(self) -> str:
        size = self.spec["image_size"]
        return f"Model({self.spec['name']!r}, image_size={size}, dtype={self.dtype!r})"

    @classmethod
    def from_checkpoint(
        cls,
        path: str | os.PathLike[str],
        *,
        plugins: Sequence[str] = (),
        tokenizer: str | os.PathLike[str] | None = None,
        which: str | None = None,
        **options: Any,
    ) -> "Model":
        """Builds the model that a checkpoint of clipjax describes.

        `clipjax.load` takes these paths and those of others, and has an example.

        Args:
            path: a workdir, its `checkpoints` folder, or one step's folder.
            plugins: modules of yours that the checkpoint may name; it has no other imported.
            tokenizer: file of its vocabulary, for a checkpoint that has none inside.
            which: `params`, `ema_params`, or an average of `config.optimizer.averages`; by default
                `ema_params` where the checkpoint has them.
            **options: mesh, batch_size, dtype, preprocess; see the class.

        Raises:
            ValueError: there is no checkpoint, or this clipjax's tokenizer is not the one that
                the checkpoint was trained with.
            DamagedCheckpointError: the checkpoint is not what was written.
        """
        plugins = check_plugins(plugins, path="plugins")

        def read(found: Choice) -> "Model":
            step_dir, manifest = found.step_dir, found.manifest
            spec = spec_in(step_dir, manifest.contract, plugins=plugins, tokenizer=tokenizer)
            check_model(step_dir, manifest, spec, plugins=plugins)
            made = load_tokenizer(step_dir, plugins=plugins, tokenizer=tokenizer)
            # Stacked is how the model is built here, however it was trained.
            variables = load_variables(step_dir, stack_layers, which)
            run_prompts = functools.partial(prompts_of_run, manifest.config, step_dir)
            return cls(
                spec, variables, tokenizer=made, run_prompts=run_prompts, plugins=plugins, **options
            )

        return read_newest(path, read)

    @property
    def apply(self) -> Callable[..., Any]:
        """The pure function `module.apply(variables, images, tokens, ...) -> CLIPOutput`.

        images are float `[batch, height, width, 3]`, normalised; tokens int32 `[batch, length]`.
        """
        return self.module.apply

    @property
    def logit_scale(self) -> jax.Array:
        """The parameter as losses take it, float32 `[]`: the logarithm of the cosines' factor."""
        return self.variables["params"]["logit_scale"]

    @property
    def logit_bias(self) -> jax.Array | None:
        """What is added to the scaled cosines, float32 `[]`; None for a model without it."""
        return self.variables["params"].get("logit_bias")

    @overload
    def encode_image(self, images: Iterable[ImageLike]) -> np.ndarray: ...

    @overload
    def encode_image(self, images: Iterable[ImageLike], *, as_jax: Literal[True]) -> jax.Array: ...

    def encode_image(self, images: Iterable[ImageLike], *, as_jax: bool = False) -> Any:
        """Embeds images.

        Args:
            images: n paths, encoded bytes, Pillow images or uint8 arrays `[height, width, 3 or 4]`,
                mixed as you like.
            as_jax: give an array on the mesh's devices, in place of one of NumPy.

        Returns:
            `[n, embed]`, float32, rows of length 1.

        Raises:
            ValueError: no list of images, a file is missing, or an image does not decode; the
                message names it.

        Example:
            >>> model.encode_image(["a.jpg", np.zeros((30, 40, 3), np.uint8)]).shape
            (2, 512)
        """
        run = embed_fn(self.encode_fns.image, self.mesh)
        return self._run_images(run, images, "encode_image", as_jax=as_jax)

    @overload
    def encode_text(self, texts: Iterable[str]) -> np.ndarray: ...

    @overload
    def encode_text(self, texts: Iterable[str], *, as_jax: Literal[True]) -> jax.Array: ...

    def encode_text(self, texts: Iterable[str], *, as_jax: bool = False) -> Any:
        """Embeds texts.

        Args:
            texts: n strings.
            as_jax: as for `encode_image`.

        Returns:
            `[n, embed]`, float32, rows of length 1.

        Raises:
            ValueError: a single string, or an entry that is no string.

        Example:
            >>> texts = model.encode_text(["a cat", "a dog"], as_jax=True)
            >>> texts.shape, round(float((texts[0] ** 2).sum()), 3)
            ((2, 512), 1.0)
        """
        run = embed_fn(self.encode_fns.text, self.mesh)
        return self._run_texts(run, texts, "encode_text", as_jax=as_jax)

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

        Example:
            >>> model.image_tokens(["a.jpg"], layer=-1).shape[:2]
            (1, 50)
        """
        run = self._tokens_fn("image", layer, final_norm)
        return self._run_images(run, images, "image_tokens")

    def text_tokens(
        self, texts: Iterable[str], layer: int | None = None, *, final_norm: bool = False
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

        Example:
            >>> model.text_tokens(["a cat"]).shape[:2]
            (1, 77)
        """
        return self._run_texts(self._tokens_fn("text", layer, final_norm), texts, "text_tokens")

    def zero_shot(self, class_names: Iterable[str], templates: Given | None = None) -> ZeroShotHead:
        """Makes a classifier of names: one text embedding a class, averaged over templates.

        Args:
            class_names: C names, non-empty and different, spaces around them aside.
            templates: a name (`openai_80`), a file, a list of templates, or a map from class name
                to prompts. By default those that the run evaluated with, which trained the model;
                `simple` where there was none.

        Returns:
            The head; its `weights` are `[C, embed]`, float32, rows of length 1.

        Raises:
            ValueError: no names, an empty one, or one given twice; unknown templates.

        Example:
            >>> head = model.zero_shot(["cat", "dog"], templates="openai_7")
            >>> head.weights.shape, [len(answers) for answers in head(["a.jpg", "b.jpg"]).top(2)]
            ((2, 512), [2, 2])

        Reference: arXiv:2103.00020, section 3.1.
        """
        one = isinstance(class_names, str)
        names = strings([class_names] if one else class_names, "zero_shot")
        counts = Counter(map(str.strip, names))
        odd = [name for name in names if not name.strip() or counts[name.strip()] > 1]
        if odd or not names:
            raise ValueError(
                f"the labels {names} are not usable ({odd or 'none'}); "
                "give one or more, each different and not empty"
            )
        prompts = self.prompts(templates)
        logging.info("templates: %s", prompts.origin)
        warn_of_articles(names, prompts)
        weights = average_prompts(
            self.variables,
            names,
            prompts.templates,
            encode_text_fn=self.encode_fns.text,
            tokenizer=self.tokenizer,
            mesh=self.mesh,
            batch_size=self.batch_size,
        )
        bias = self.logit_bias
        return ZeroShotHead(
            class_names=tuple(names),
            weights=jax.device_get(weights),
            prompts=prompts,
            encode_image=self.encode_image,
            scale=float(np.exp(jax.device_get(self.logit_scale))),
            bias=None if bias is None else float(jax.device_get(bias)),
        )

    def classify(
        self,
        images: Iterable[ImageLike],
        labels: Iterable[str],
        templates: Given | None = None,
    ) -> list[list[tuple[str, float]]]:
        """Ranks labels for each image: `zero_shot(labels, templates)(images).top()`.

        Args:
            images: as for `encode_image`.
            labels: as `class_names` of `zero_shot`.
            templates: as for `zero_shot`.

        Returns:
            For each image all labels with their probabilities, the most probable first.

        Raises:
            ValueError: as `zero_shot` and `encode_image`.
        """
        return self.zero_shot(labels, templates)(images).top()

    def prompts(self, templates: Given | None = None) -> Prompts:
        """Chooses the templates that class names are put into, and says where they are from.

        Args:
            templates: as for `zero_shot`.

        Raises:
            ValueError: none are given, and the checkpoint names a file that it does not hold.
        """
        return choose_prompts(templates, run=None if templates is not None else self.run_prompts())

    def _tokens_fn(self, tower: str, layer: int | None, final_norm: bool) -> RunFn:
        key = (tower, layer, final_norm)
        if key not in self._tokens_fns:
            number = None
            if layer is not None:
                depth = count_layers(self.module, tower, self.variables, self._blank(tower))
                number = layer_number(layer, depth, tower)
            if final_norm:
                check_final_norm(tower, number, self.variables)
            tokens = EncodeTokens(
                with_products(self.module, dtype=self.dtype, platform=platform_of(self.mesh)),
                tower,
                number,
                final_norm=final_norm,
                preprocess=self.spec["preprocess"],
                dtype=self.dtype,
            )
            self._tokens_fns[key] = CompiledFn(tokens, self.mesh)
        return self._tokens_fns[key]

    def _blank(self, tower: str) -> np.ndarray | Patches:
        if tower == "text":
            return np.zeros(self.spec["text"]["context_length"], np.int32)
        return self.preprocess.blank()

    def _run_images(
        self, run: RunFn, images: Iterable[ImageLike], caller: str, *, as_jax: bool = False
    ) -> Any:
        listed = list(enumerate(entries(images, caller, "image")))
        with reading_images(self.preprocess) as read:
            return self._run(run, listed, read, "image", as_jax=as_jax)

    def _run_texts(
        self, run: RunFn, texts: Iterable[str], caller: str, *, as_jax: bool = False
    ) -> Any:
        return self._run(run, strings(texts, caller), self.tokenizer, "text", as_jax=as_jax)

    def _run(self, run: RunFn, items: list, read: Callable, tower: str, *, as_jax: bool) -> Any:
        return run_rows(
            run,
            self.variables,
            items,
            read,
            blank=self._blank(tower),
            mesh=self.mesh,
            batch_size=self.batch_size,
            as_jax=as_jax,
        )
