"""A text tower that learns from another one, so that it can read what that one cannot.

Another language on a frozen image tower: a student with a vocabulary of its own learns the
embeddings of a frozen teacher, which reads the same caption, or its translation.

Reference: arXiv:2004.09813, for sentences; for CLIP's texts F. Carlsson et al., Cross-lingual and
Multilingual CLIP, LREC 2022.
"""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from clipjax.array_types import Array
from clipjax.ranges import STRENGTH, Rule, Text

TEACHER, TEACHER_TEXT = "teacher", "teacher_text"


class TextDistillation:
    """The squared distance of unit embeddings of a text, the student's and a frozen teacher's.

    `loss = mean_i |student_i - teacher_i|^2`, that is `2 - 2 cos`, and on top of it `pair_weight`
    times the loss of pairs; where that is 0, no image is embedded. It has the methods `init` and
    `apply` of a flax module, as its teacher is a collection of the train state.

    Args:
        pair_loss: that of `config.loss`.
        open_model: gives the `Model` of a path, see `clipjax.load`, and the same one again.
        teacher: what `clipjax.load` reads, of the student's `embed_dim`. Its text tower is kept in
            the checkpoint; to go on, a run needs the path for its sizes and its vocabulary.
        caption: which of an example's captions the teacher reads, where they are a map, such as
            `en` of `language=all`; empty for that which the student reads.
        pair_weight: of the loss of pairs beside it.
    """

    needs: tuple[str, ...] = ()
    ranges: ClassVar[Mapping[str, Rule]] = {
        "teacher": Text("a file or folder of weights"),
        "caption": Text("the name of a caption, or empty"),
        "pair_weight": STRENGTH,
    }

    def __init__(
        self,
        pair_loss: Any,
        open_model: Callable[[str], Any],
        teacher: str,
        caption: str = "",
        pair_weight: float = 0.0,
    ) -> None:
        self.pair_loss, self.pair_weight = pair_loss, pair_weight
        self.open_model, self.teacher, self.caption = open_model, teacher, caption

    def other_texts(self) -> dict[str, tuple[Any, str]]:
        """What a batch holds besides: its tokenizer, and the caption's name, by key."""
        return {TEACHER_TEXT: (self.open_model(self.teacher).tokenizer, self.caption)}

    def load_collections(self) -> dict[str, Any]:
        """The teacher's text tower, as it was trained."""
        return {TEACHER: {"params": jax.device_get(self._tower())}}

    def _tower(self) -> dict[str, Any]:
        params = self.open_model(self.teacher).variables["params"]
        return {name: leaf for name, leaf in params.items() if name.startswith(("text_", "logit_"))}

    def init(self, rngs: Any, outputs: Any, batch: Any, rng: Any) -> dict[str, Any]:
        """Zeros in the place of the teacher.

        Raises:
            ValueError: the teacher's embeddings are longer or shorter than the student's.
        """
        del rngs, batch, rng
        found = self.open_model(self.teacher).spec["embed_dim"]
        wanted = outputs.text_embeds.shape[-1]
        if found != wanted:
            raise ValueError(
                f"the teacher {self.teacher!r} has embed_dim {found}, the model {wanted}: a "
                "student lies in its teacher's space; make them equal"
            )
        return {TEACHER: {"params": jax.tree.map(jnp.zeros_like, self._tower())}}

    def apply(
        self, variables: Any, outputs: Any, batch: Any, rng: Any, **options: Any
    ) -> tuple[tuple[Array, dict[str, Array]], dict[str, Any]]:
        """The loss, float32 [], and metrics; and the collections that changed, which are none.

        Args:
            variables: of `init`, or loaded.
            outputs: `text_embeds` `[batch, embed]`, unit rows.
            batch: `teacher_text` `[batch, length]`, the teacher's token ids.
            rng: not used.
            **options: of flax, not used.
        """
        del rng, options
        encode = self.open_model(self.teacher).encode_fns.text
        teacher = encode(variables[TEACHER], batch[TEACHER_TEXT])
        teacher = jax.lax.stop_gradient(teacher.astype(jnp.float32))
        student = outputs.text_embeds.astype(jnp.float32)
        loss = jnp.square(student - teacher).sum(axis=-1).mean()
        metrics = {"teacher_cosine": (student * teacher).sum(axis=-1).mean()}
        if self.pair_weight:
            of_pairs, more = self.pair_loss(
                outputs.image_embeds, outputs.text_embeds, outputs.logit_scale, outputs.logit_bias
            )
            loss, metrics = loss + self.pair_weight * of_pairs, {**metrics, **more}
        return (loss, metrics), {}
