"""What is served, without HTTP: answers of a model and of an index."""

import asyncio
import os
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import jax
import numpy as np
from absl import logging

from clipjax.array_types import PyTree
from clipjax.data.source import SampleError
from clipjax.embeddings.queries import combine
from clipjax.encoding.batches import RowLayout
from clipjax.encoding.compiled import embed_fn
from clipjax.encoding.prompts import Given, Prompts, choose_prompts
from clipjax.encoding.templates import fill_templates
from clipjax.inference import Model, ZeroShotHead
from clipjax.inference.rows import run_rows
from clipjax.serving.batching import Batcher
from clipjax.serving.limits import Limits, RefusedError
from clipjax.serving.searching import Searcher

T = TypeVar("T")

_HEADS = 32  # that are kept: classifiers of labels that were asked for lately
_QUERIES = 16  # that are searched for together


class Service:
    """A model, and perhaps an index, behind queues that group what waits.

    Args:
        model: on devices of this process; its `batch_size` is `limits.batch_rows`.
        limits: of requests.
        searcher: the index.
        templates: of classifications that give none; by default those of the run.

    Raises:
        ValueError: the model has no tokenizer, or the templates are none.
    """

    def __init__(
        self,
        model: Model,
        limits: Limits,
        *,
        searcher: Searcher | None = None,
        templates: Given | None = None,
    ) -> None:
        self.model, self.limits, self.searcher = model, limits, searcher
        self._prompts = model.prompts(templates)
        # Of any label: scale and bias are those of all heads.
        self._head = model.zero_shot(["picture"], templates)
        self._heads: OrderedDict[Any, ZeroShotHead] = OrderedDict()
        self._pool = ThreadPoolExecutor(min(8, os.cpu_count() or 1), thread_name_prefix="requests")
        self._pictures: Batcher[PyTree] = Batcher(self._embed_rows, limits)
        self._texts: Batcher[str] = Batcher(model.encode_text, limits)
        self._batchers: list[Batcher[Any]] = [self._pictures, self._texts]
        if searcher is not None:
            self._queries: Batcher[np.ndarray] = Batcher(searcher.find, limits, max_rows=_QUERIES)
            self._batchers.append(self._queries)

    def warm_up(self) -> None:
        """Compiles all that requests can need: each size of a batch, and of texts each length.

        A request that has to wait for a compilation could be late.
        """
        model, most = self.model, self.limits.batch_rows
        sizes = {RowLayout(model.mesh, rows, most).batch_size for rows in range(1, most + 1)}
        texts = self._texts_of_each_length()
        logging.info(
            "compiling for %d sizes of a batch, and of each for pictures and %d lengths of a text",
            *(len(sizes), len(texts)),
        )
        for size in sorted(sizes):
            self._embed_rows([model.preprocess.blank()] * size)
            for text in texts:
                model.encode_text([text] * size)
            logging.info("batches of %d are compiled", size)
        if self.searcher is not None:
            self.searcher.warm_up(_QUERIES)

    def _texts_of_each_length(self) -> list[str]:
        """One text of each number of tokens that a batch of texts may be cut to."""
        model = self.model
        texts = ["a " * words for words in range(1, model.tokenizer.context_length + 1)]
        run = embed_fn(model.encode_fns.text, model.mesh)
        tokens = model.tokenizer(texts)
        lengths = [run.cut(row[None], model.mesh).shape[1] for row in tokens]
        return list(dict(zip(lengths, texts, strict=True)).values())

    def close(self) -> None:
        """Ends the threads, once what they do is done."""
        for batcher in self._batchers:
            batcher.close()
        self._pool.shutdown(cancel_futures=True)

    async def aside(self, run: Callable[..., T], *args: Any) -> T:
        """Runs what takes a while in a thread; others' requests go on."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, run, *args)

    def about(self) -> dict[str, Any]:
        """What the model and the index are, and what is allowed."""
        return {
            "model": self.model.spec["name"],
            "embed_dim": self._head.weights.shape[1],
            "probabilities": self._probabilities(),
            "templates": _about(self._prompts),
            "index": None if self.searcher is None else {"pictures": len(self.searcher)},
            "limits": {
                name: getattr(self.limits, name)
                for name in ("body_bytes", "labels", "texts", "characters", "results")
            },
        }

    async def classify(
        self, picture: bytes, labels: Sequence[str], templates: str | tuple[str, ...] | None
    ) -> dict[str, Any]:
        """Ranks labels for a picture: probabilities as the model was trained.

        Raises:
            RefusedError: the picture, the label or the templates cannot be used, or too much waits.
        """
        try:
            self._head.check_labels(labels)
        except ValueError as error:
            raise RefusedError(400, str(error)) from error
        head = await self._head_of(tuple(labels), templates)
        scores = head.scores_of((await self.embed_picture(picture))[None])
        ((*ranked,),) = scores.top()
        return {
            "model": self.model.spec["name"],
            "probabilities": self._probabilities(),
            "templates": _about(head.prompts),
            "labels": [{"label": label, "probability": p} for label, p in ranked],
        }

    async def search(
        self, texts: Sequence[str], picture: bytes | None, minus: Sequence[str], top: int
    ) -> dict[str, Any]:
        """Finds the pictures of the index nearest to texts and a picture, less other texts.

        Raises:
            RefusedError: there is no index, nothing to look for, or too much waits.
        """
        searcher = self.index()
        embeds = await self.embed_texts([*texts, *minus])
        pictures = [] if picture is None else [await self.embed_picture(picture)]
        images = np.reshape(pictures, (len(pictures), searcher.embed_dim))
        try:
            query = combine(embeds[: len(texts)], images, embeds[len(texts) :])
        except ValueError as error:
            raise RefusedError(400, str(error)) from error
        ((cosines, places),) = await asyncio.wrap_future(self._queries.submit([query]))
        results = await self.aside(searcher.results, cosines[:top], places[:top])
        return {"searched": len(searcher), "results": results}

    def index(self) -> Searcher:
        """The index; RefusedError where there is none."""
        if self.searcher is None:
            raise RefusedError(404, "this server has no index")
        return self.searcher

    async def embed_picture(self, picture: bytes) -> np.ndarray:
        """Embeds a picture: `[embed]`, float32, of length 1."""
        try:
            row = await self.aside(self.model.preprocess, picture)
        except SampleError as error:
            raise RefusedError(400, f"the picture cannot be used: {error.message:.300}") from error
        (embed,) = await asyncio.wrap_future(self._pictures.submit([row]))
        return embed

    async def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Embeds texts: `[n, embed]`, float32, rows of length 1."""
        if not texts:
            return np.zeros((0, self._head.weights.shape[1]), np.float32)
        # Many are embedded batch by batch: others come between, and none is left when one gives up.
        rows, embeds = self.limits.batch_rows, []
        for start in range(0, len(texts), rows):
            part = self._texts.submit(texts[start : start + rows])
            embeds.append(await asyncio.wrap_future(part))
        return np.concatenate(embeds)

    async def _head_of(
        self, labels: tuple[str, ...], templates: str | tuple[str, ...] | None
    ) -> ZeroShotHead:
        key = (labels, templates)
        if key not in self._heads:
            prompts, of_classes = await self.aside(self._fill, labels, templates)
            embeds = await self.embed_texts([text for texts in of_classes for text in texts])
            starts = np.cumsum([0, *map(len, of_classes)])[:-1]
            sums = np.add.reduceat(embeds, starts, axis=0)
            # As `average_prompts` has it, which compiles anew for each number of labels.
            weights = sums / np.linalg.norm(sums, axis=1, keepdims=True)
            self._heads[key] = ZeroShotHead(
                class_names=labels,
                weights=weights,
                prompts=prompts,
                encode_image=self.model.encode_image,
                scale=self._head.scale,
                bias=self._head.bias,
            )
            if len(self._heads) > _HEADS:
                self._heads.popitem(last=False)
            return self._heads[key]
        self._heads.move_to_end(key)
        return self._heads[key]

    def _fill(
        self, labels: Sequence[str], templates: str | tuple[str, ...] | None
    ) -> tuple[Prompts, list[tuple[str, ...]]]:
        try:
            prompts = self._prompts if templates is None else choose_prompts(templates)
            found = fill_templates(prompts.templates, labels)
        except ValueError as error:
            raise RefusedError(400, f"{error!s:.300}") from error
        count = sum(map(len, found))
        if count > self.limits.prompts:
            raise RefusedError(
                400,
                f"labels x templates are {count:,} texts, allowed are {self.limits.prompts:,}: "
                "give fewer of either",
            )
        return prompts, found

    def _embed_rows(self, rows: list[PyTree]) -> np.ndarray:
        """Embeds preprocessed pictures, as `Model.encode_image` does."""
        model = self.model
        return run_rows(
            embed_fn(model.encode_fns.image, model.mesh),
            model.variables,
            rows,
            lambda rows: jax.tree.map(lambda *leaves: np.stack(leaves), *rows),
            blank=model.preprocess.blank(),
            mesh=model.mesh,
            batch_size=model.batch_size,
            as_jax=False,
        )

    def _probabilities(self) -> str:
        return "softmax" if self._head.bias is None else "sigmoid"


def _about(prompts: Prompts) -> Any:
    """The templates themselves; where they are from may be a file of this machine."""
    if isinstance(prompts.templates, Mapping):
        return {"classes": len(prompts.templates)}
    return list(prompts.templates)
