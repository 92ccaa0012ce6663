"""What a retrieval finds, to look at: captions and the pictures that the model gives them."""

from typing import NamedTuple

import jax
import numpy as np

from clipjax.array_types import PyTree
from clipjax.data.images.naflex import to_image
from clipjax.encoding.reading import ImageReader
from clipjax.evals.retrieval import Chunk, Retrieval, gather_rows

_NUM_SHOWN = 3  # best pictures of a caption


class Picture(NamedTuple):
    """A picture that was found.

    Attributes:
        image: `[height, width, 3]`, uint8, as the model saw it.
        score: cosine of picture and caption.
    """

    key: str
    image: np.ndarray
    score: float
    is_right: bool


class Found(NamedTuple):
    """What the model finds for one caption.

    Attributes:
        pictures: the three best, best first.
        right: the caption's own picture.
        rank: of the caption's own picture among all that were searched; 1 is the best.
        num_searched: pictures that were searched.
    """

    caption: str
    pictures: tuple[Picture, ...]
    right: Picture
    rank: int
    num_searched: int


def find_pictures(
    retrieval: Retrieval, params: PyTree, *, num_queries: int = 12, num_pictures: int = 512
) -> tuple[Found, ...]:
    """Searches evenly spaced pictures of an evaluation for the first captions of some of them.

    A collective, as `Retrieval.run` is; every process gets the same answers.

    Args:
        num_queries: captions to search for; of fewer pictures, all.
        num_pictures: pictures to search; of fewer, all. It bounds what this costs.

    Returns:
        Answers in the source's order; pictures that do not decode are not among them.
    """
    part = retrieval.over(_spaced(len(retrieval.pictures), num_pictures))
    images, texts, _ = part.encode(params)
    image_embeds, image_owners = _rows(images, part)
    text_embeds, text_owners = _rows(texts, part)
    first = np.unique(text_owners, return_index=True)[1]  # the first caption of each picture
    with ImageReader(part.pictures, part.preprocess, max_bad=0, where=part.name) as reader:

        def picture(place: int, scores: np.ndarray, owner: int) -> Picture:
            # Read again rather than kept: another process may have read it the first time.
            example, pixels = reader.read_one(int(image_owners[place]))
            return Picture(
                key=example["key"],
                image=to_image(pixels),
                score=float(scores[place]),
                is_right=bool(image_owners[place] == owner),
            )

        found = []
        for row in first[_spaced(len(first), num_queries)]:
            owner = int(text_owners[row])
            scores = image_embeds @ text_embeds[row]
            order = np.argsort(-scores, kind="stable")
            own = int(np.flatnonzero(image_owners == owner)[0])
            found.append(
                Found(
                    caption=part.captions_of(part.pictures[owner])[0],
                    pictures=tuple(picture(p, scores, owner) for p in order[:_NUM_SHOWN]),
                    right=picture(own, scores, owner),
                    rank=int(np.flatnonzero(order == own)[0]) + 1,
                    num_searched=len(order),
                )
            )
    return tuple(found)


def _spaced(number: int, most: int) -> np.ndarray:
    """Up to `most` of `number` positions, evenly spaced."""
    return np.unique(np.linspace(0, number - 1, min(number, most)).astype(int))


def _rows(chunks: list[Chunk], part: Retrieval) -> tuple[np.ndarray, np.ndarray]:
    """Gives every process all embeddings of a side and their owners, without padding."""
    gathered = jax.device_get(gather_rows(chunks, mesh=part.mesh))
    embeds, owners = (np.concatenate(side) for side in zip(*gathered, strict=True))
    return embeds[owners >= 0], owners[owners >= 0]
