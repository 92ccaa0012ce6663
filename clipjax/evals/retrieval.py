"""Retrieval between images and captions, several captions an image, in bounded memory."""

import dataclasses
import functools
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from clipjax.array_types import PyTree
from clipjax.data.captions import as_lines, has_lines
from clipjax.data.loading.caption_faults import NOTABLE, has_words, tell_wordless
from clipjax.data.sources.subset import Subset
from clipjax.encoding.batches import RowLayout, put_on_mesh, run_batches
from clipjax.encoding.compiled import embed_fn
from clipjax.encoding.reading import ImageBatch, ImageReader
from clipjax.evals.evaluation import Evaluation
from clipjax.evals.examples import MAX_FOUND, hits_and_misses
from clipjax.evals.pictures import Pictures
from clipjax.metrics import best_positive, count_before, nearest, no_positive
from clipjax.partitioning import batch_sharding, replicated
from clipjax.processes.distributed import is_lead
from clipjax.ranges import Many, Optional, Rule, whole

# A chunk of one side: embeddings [batch, embed] and the image that each row belongs to [batch],
# -1 for padding. Both lie over the mesh's batch axes.
Chunk = tuple[jax.Array, jax.Array]


@dataclasses.dataclass(kw_only=True)
class Retrieval(Evaluation):
    """Recall@k and median rank from text to image and from image to text.

    A query is a hit if any of its positives is among the k best: an image's positives are its
    captions, a caption's positive is its image. Rows of the source that show the same image are
    one image with the captions of all of them, see `Pictures`. Each line of a text is a caption,
    unless the source was told or knows otherwise (`?captions=whole`).

    Scores are held for batch_size x batch_size pairs at a time. An image that fails leaves together
    with its captions.

    Attributes:
        ks: how many of the best count.
        fold: pictures a fold: recall is given also as the mean over folds of so many pictures, in
            the source's order, each searched alone (COCO's 5,000 in five folds of 1,000).
    """

    ks: Sequence[int] = (1, 5, 10)
    fold: int | None = None
    batch_size: int = 256
    max_bad: int = 0
    name: str = "retrieval"

    ranges: ClassVar[Mapping[str, Rule]] = {
        "ks": Many(whole(), "whole numbers from 1", at_least=1),
        "fold": Optional(whole(2), "no folds"),
        **Evaluation.ranges,
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        self.ks = tuple(self.ks)
        self._by_lines = getattr(self.source, "captions", None) is None
        self._tables: dict[str, Any] = {}
        self._told = False  # what is odd about the captions, as an evaluation runs many times
        if getattr(self.source, "task", None) == "zero_shot":
            raise ValueError(
                f"{self.name}: the dataset is for classification, as dataset_type.txt or the lack "
                "of it says, and holds no captions: evaluate it by zero_shot"
            )

    @property
    def metric_names(self) -> tuple[str, ...]:
        """What `run` gives."""
        ways = ("image_retrieval", "text_retrieval")
        names = []
        for way in ways:
            names += [f"{way}_recall@{k}" for k in self.ks] + [f"{way}_median_rank"]
            names += [self._of_folds(f"{way}_recall@{k}") for k in self.ks if self.fold]
        return (*names, "num_images", "num_texts", "num_rows")

    def _of_folds(self, name: str) -> str:
        return f"{name}_folds_of_{self.fold}"

    def tables(self) -> dict[str, Any]:
        """With `keeps_examples` the `queries` of the last `run`, as plain JSON: see `_queries`."""
        return self._tables

    def run(self, params: PyTree) -> dict[str, float]:
        """Evaluates the model on every image and every caption, each counted once.

        Args:
            params: the model's variables; on the mesh, or anywhere else (they are then copied).

        Returns:
            "image_retrieval_recall@k" (text to image) and "text_retrieval_recall@k" (image to
            text) in [0, 1] for each k; "..._median_rank" of a query's best positive, from 1;
            "num_images", "num_texts" and "num_rows" of the source.

        Raises:
            ValueError: more than `max_bad` images do not decode, or an image without captions.
            FloatingPointError: embeddings that are not finite.
        """
        if self.fold and len(self.pictures) % self.fold:
            raise ValueError(
                f"{self.name}: {len(self.pictures)} pictures are no multiple of fold={self.fold}: "
                "the last fold would be an easier search; choose another, or none"
            )
        images, texts, num_captions = self.encode(params)
        metrics = {}
        for name, queries, candidates in (
            ("image_retrieval", texts, images),
            ("text_retrieval", images, texts),
        ):
            ranks, of_fold, folds = self._ranks(queries, candidates)
            if self.keeps_examples and name == "image_retrieval":
                owners = np.repeat(np.arange(len(num_captions)), num_captions)
                self._tables["queries"] = self._queries(ranks, owners, texts, images)
            for k in self.ks:
                metrics[f"{name}_recall@{k}"] = float(np.mean(ranks <= k))
            metrics[f"{name}_median_rank"] = float(np.median(ranks))
            for k in self.ks if self.fold else ():
                means = [np.mean(of_fold[folds == fold] <= k) for fold in np.unique(folds)]
                metrics[self._of_folds(f"{name}_recall@{k}")] = float(np.mean(means))
        metrics["num_images"] = float(np.count_nonzero(num_captions))
        metrics["num_texts"] = float(num_captions.sum())
        metrics["num_rows"] = float(len(self.source))
        return metrics

    def encode(self, params: PyTree) -> tuple[list[Chunk], list[Chunk], np.ndarray]:
        """Encodes all pictures and captions; a collective.

        Returns:
            (pictures, captions in the order of their pictures, captions of each picture
            `[pictures]`: 0 where it did not decode).
        """
        params = put_on_mesh(params, self.mesh)
        captions: dict[int, tuple[str, ...]] = {}
        images, num_captions = self._encode_images(params, captions)
        return images, self._encode_texts(params, captions, num_captions), num_captions

    def over(self, pictures: Sequence[int] | np.ndarray) -> "Retrieval":
        """The same evaluation on some of its pictures; it says nothing of its captions again."""
        source: Any = self.pictures
        part = Subset(source, np.asarray(pictures), "pictures")
        result = dataclasses.replace(self, source=part, max_bad=len(part))
        result._told = True
        return result

    @functools.cached_property
    def pictures(self) -> Pictures:
        """What is searched: pictures, where several rows may show one."""
        return Pictures(self.source, self.name)

    def _encode_images(
        self, params: PyTree, captions: dict[int, tuple[str, ...]]
    ) -> tuple[list[Chunk], np.ndarray]:
        """Encodes the images; notes this process's captions and counts everybody's.

        Returns:
            (chunks, captions of each image `[images]`, 0 where the image did not decode).
        """
        layout = RowLayout(self.mesh, len(self.pictures), self.batch_size)
        embed = embed_fn(self.encode_image_fn, self.mesh)
        chunks, counts = [], []
        reader = ImageReader(self.pictures, self.preprocess, max_bad=self.max_bad, where=self.name)
        with reader:
            batches = run_batches(embed, params, layout, reader.batches(layout))
            for number, (embeds, batch) in enumerate(batches):
                indices = layout.indices(number)
                found = self._captions_in(batch, reader)
                captions.update((int(indices[row]), texts) for row, texts in found.items())
                numbers = np.zeros((len(indices), 2), np.int32)
                for row, texts in found.items():
                    several = _several(batch.examples[row]["text"]) if self._by_lines else ()
                    numbers[row] = len(texts), sum(map(has_lines, several))
                owners = np.where(batch.mask, indices, -1).astype(np.int32)
                chunks.append((embeds, layout.to_device(owners)))
                counts.append(layout.to_device(numbers))
        counted = np.concatenate(jax.device_get(gather_rows(counts, mesh=self.mesh)))
        num_captions, num_split = counted[: layout.num_rows].T
        self._tell(captions, int(num_split.sum()), int(num_captions.sum()))
        # Counted over all processes, so that all of them come to one verdict.
        reader.check(int(np.sum(num_captions == 0)))
        return chunks, num_captions

    def _captions_in(self, batch: ImageBatch, reader: ImageReader) -> dict[int, tuple[str, ...]]:
        found = {}
        for row in np.flatnonzero(batch.mask).tolist():
            try:
                found[row] = self.captions_of(batch.examples[row])
            except ValueError as error:  # in all processes at the end, so that none waits
                reader.refuse(str(error))
                if jax.process_count() == 1:
                    reader.check(0)
        return found

    def captions_of(self, example: Mapping[str, Any]) -> tuple[str, ...]:
        """The captions of an example of `pictures`, as they are asked for."""
        text = example.get("text")
        if isinstance(text, Mapping):
            raise ValueError(
                f"{example['key']} has captions in {', '.join(map(str, text))}; "
                "retrieval asks in one language: give the source ?language=NAME"
            )
        texts = _several(as_lines(text) if self._by_lines and text else text)
        if not texts or not all(isinstance(t, str) and t.strip() for t in texts):
            raise ValueError(
                f"{example['key']} has the captions {texts}; "
                "every image needs at least one, and none may be empty"
            )
        return texts

    def _tell(self, captions: dict[int, tuple[str, ...]], num_split: int, total: int) -> None:
        """Says once what is odd about the captions: those of the lead stand for all."""
        if self._told or not is_lead():
            return
        self._told = True
        if num_split:
            logging.info(
                "%s: %d texts hold several lines, and each line is a caption, %d in all; "
                "?captions=whole in the SPEC leaves a text whole",
                self.name,
                num_split,
                total,
            )
        images = Counter(text for texts in captions.values() for text in set(texts))
        mine = [text for texts in captions.values() for text in texts]
        shared = sum(images[text] > 1 for text in mine)
        if shared >= NOTABLE * len(mine) and shared:
            logging.warning(
                "%s: %d of %d captions (%.0f %%) are those of other images, too, and count as "
                "wrong there: recall@1 ends far below 1. Names of classes are evaluated by "
                "zero_shot",
                self.name,
                shared,
                len(mine),
                100 * shared / len(mine),
            )
        wordless = sum(not has_words(text) for text in mine)
        tell_wordless(wordless, len(mine), f"captions of {self.name}")

    def _encode_texts(
        self, params: PyTree, captions: dict[int, tuple[str, ...]], num_captions: np.ndarray
    ) -> list[Chunk]:
        """Encodes the captions in the order of their images."""
        first = np.concatenate([[0], np.cumsum(num_captions)])
        layout = RowLayout(self.mesh, int(first[-1]), self.batch_size)
        embed = embed_fn(self.encode_text_fn, self.mesh)

        def caption(row: int, owner: int) -> str:
            if owner not in captions:  # another process decoded this image
                captions[owner] = self.captions_of(self.pictures[owner])
            return captions[owner][row - first[owner]]

        def rows(number: int) -> tuple[np.ndarray, np.ndarray]:
            indices = layout.indices(number)
            real = np.minimum(indices, layout.num_rows - 1)
            owners = np.searchsorted(first, real, side="right") - 1
            texts = [caption(int(r), int(o)) for r, o in zip(real, owners, strict=True)]
            owners = np.where(indices < layout.num_rows, owners, -1)
            return np.asarray(self.tokenizer(texts), np.int32), owners.astype(np.int32)

        return [
            (embeds, layout.to_device(owners))
            for embeds, owners in run_batches(embed, params, layout, rows)
        ]

    def _queries(
        self, ranks: np.ndarray, owners: np.ndarray, texts: list[Chunk], images: list[Chunk]
    ) -> list[dict[str, Any]]:
        """Lists captions that find their picture first, and those that find it last.

        Args:
            ranks, owners: `[captions]`, rank of the caption's own picture, and which that is.

        Returns:
            `caption`, the `row` of its picture with its `rank`, and `found`, the best pictures:
            each a `row` with its `score`.
        """
        chosen = hits_and_misses(ranks)
        size = len(texts[0][1])
        picked = [_pick(texts[i // size][0], i % size, mesh=self.mesh) for i in chosen.tolist()]
        stacked = stack_chunks(images, mesh=self.mesh)
        scores, best = jax.device_get(_find(picked, *stacked, count=MAX_FOUND, mesh=self.mesh))
        found = []
        for query, of_query, pictures in zip(chosen.tolist(), scores, best, strict=True):
            owner = int(owners[query])
            place = query - int(np.searchsorted(owners, owner))
            found.append(
                {
                    "caption": self.captions_of(self.pictures[owner])[place],
                    "row": self.pictures.first_row(owner),
                    "rank": int(ranks[query]),
                    "found": [
                        {"row": self.pictures.first_row(int(p)), "score": round(float(s), 4)}
                        for p, s in zip(pictures, of_query, strict=True)
                        if p >= 0
                    ],
                }
            )
        return found

    def _ranks(self, queries: list[Chunk], candidates: list[Chunk]) -> tuple[np.ndarray, ...]:
        """Ranks the best positive of each query among all candidates, and among those of its fold.

        Returns:
            (ranks, ranks in the fold, fold), each `[queries]`.
        """
        stacked = stack_chunks(candidates, mesh=self.mesh)
        found = [_rank(*chunk, *stacked, fold=self.fold, mesh=self.mesh) for chunk in queries]
        ranks, nonfinite = zip(*jax.device_get(found), strict=True)
        if any(nonfinite):
            raise FloatingPointError(
                f"{self.name}: {sum(nonfinite)} embeddings are not finite; look for NaN or "
                "infinite parameters in the checkpoint"
            )
        owners, *both = np.concatenate(ranks, axis=1)
        real = owners >= 0
        return (*(each[real] for each in both), owners[real] // (self.fold or len(self.pictures)))


def _several(text: Any) -> tuple[Any, ...]:
    return (text,) if isinstance(text, str) else tuple(text or ())


@functools.partial(jax.jit, static_argnames="mesh")
def gather_rows(arrays: list[jax.Array], *, mesh: Mesh) -> list[jax.Array]:
    """Gives every process the whole of arrays that lie over the batch axes."""
    return jax.lax.with_sharding_constraint(arrays, replicated(mesh))


@functools.partial(jax.jit, static_argnames="mesh")
def stack_chunks(chunks: list[Chunk], *, mesh: Mesh) -> Chunk:
    """Stacks chunks to `[chunks, batch, ...]`; the batch stays where it lies."""
    sharding = NamedSharding(mesh, PartitionSpec(None, *batch_sharding(mesh).spec))
    stacked = tuple(jnp.stack(arrays) for arrays in zip(*chunks, strict=True))
    return jax.lax.with_sharding_constraint(stacked, sharding)


@functools.partial(jax.jit, static_argnames="mesh")
def _pick(embeds: jax.Array, row: int, *, mesh: Mesh) -> jax.Array:
    return jax.lax.with_sharding_constraint(embeds[row], replicated(mesh))


@functools.partial(jax.jit, static_argnames=("count", "mesh"))
def _find(
    queries: list[jax.Array],
    candidates: jax.Array,
    candidate_owners: jax.Array,
    *,
    count: int,
    mesh: Mesh,
) -> tuple[jax.Array, jax.Array]:
    """Gives (scores, owners) of the best candidates `[queries, count]`, see `nearest`."""
    stacked = jnp.stack(queries)

    def find(best: Any, part: Chunk) -> tuple[Any, None]:
        embeds, owners = jax.lax.with_sharding_constraint(part, replicated(mesh))
        return nearest(best, stacked, embeds, owners), None

    shape = (len(queries), count)
    none = jnp.full(shape, -jnp.inf), jnp.full(shape, -1, jnp.int32)
    best, _ = jax.lax.scan(find, none, (candidates, candidate_owners))
    return jax.lax.with_sharding_constraint(best, replicated(mesh))


@functools.partial(jax.jit, static_argnames=("fold", "mesh"))
def _rank(
    queries: jax.Array,
    query_owners: jax.Array,
    candidates: jax.Array,
    candidate_owners: jax.Array,
    *,
    fold: int | None,
    mesh: Mesh,
) -> tuple[jax.Array, jax.Array]:
    """Gives, for one batch of queries, (owners, ranks, ranks in the fold `[3, batch]`; queries that
    are not finite).

    Queries stay where they lie; the candidates come past chunk by chunk, one gathered at a time.
    """
    starts = jnp.arange(len(candidates), dtype=jnp.int32) * candidates.shape[1]
    parts = ((candidates, candidate_owners), starts)

    def find(best: Any, part: tuple[Chunk, jax.Array]) -> tuple[Any, None]:
        embeds, owners = jax.lax.with_sharding_constraint(part[0], replicated(mesh))
        return best_positive(best, queries, query_owners, embeds, owners, part[1]), None

    def count(ranks: Any, part: tuple[Chunk, jax.Array]) -> tuple[Any, None]:
        embeds, owners = jax.lax.with_sharding_constraint(part[0], replicated(mesh))
        given = (best, queries, query_owners, embeds, owners, part[1])
        more = count_before(*given)
        of_fold = count_before(*given, fold=fold) if fold else more
        return ranks + jnp.stack([more, of_fold]), None

    best = jax.lax.with_sharding_constraint(no_positive(len(queries)), batch_sharding(mesh))
    best, _ = jax.lax.scan(find, best, parts)
    ranks, _ = jax.lax.scan(count, jnp.ones((2, len(queries)), jnp.int32), parts)
    nonfinite = jnp.sum(~jnp.isfinite(queries).all(axis=1) & (query_owners >= 0))
    result = (jnp.concatenate([query_owners[None], ranks]), nonfinite)
    return jax.lax.with_sharding_constraint(result, replicated(mesh))
