"""Datasets prepared by TensorFlow Datasets as ArrayRecord, read without TensorFlow."""

import hashlib
import json
import re
from collections.abc import Sequence

from clipjax.data.source import Example, SampleError
from clipjax.data.sources.fields import text_of

# Names that mean nothing to a text encoder: numbers, WordNet ids, paths.
_MEANINGLESS = re.compile(r"\d+|n\d{8}|/.*")


class Tfds:
    """A split of a dataset of the TFDS catalogue, images left encoded.

    Args:
        where: name of the dataset, with config and version if needed.
        split: e.g. `train`, `test`, `train[:10%]`.
        image_field: the feature that holds the image.
        caption_field: the feature that holds the caption or captions; by default the text is
            the name of the label.
        label_field: the feature that holds the label, if the dataset has it.
        class_names: names of the labels. Those of TFDS serve only where they are words.
        data_dir: where TFDS keeps its data.
        download: whether to download and prepare what is missing.

    Raises:
        ValueError: if split, field or class names are missing, or the data is not prepared.
    """

    positional_keys = True  # numbers of rows

    def __init__(
        self,
        where: str,
        split: str | None = None,
        *,
        image_field: str = "image",
        caption_field: str | None = None,
        label_field: str = "label",
        class_names: Sequence[str] | None = None,
        data_dir: str | None = None,
        download: bool = False,
    ):
        import tensorflow_datasets as tfds  # slow to import, and few runs need it

        if not split:
            raise ValueError(f"tfds:{where} names no split, e.g. tfds:{where}:train")
        self._fields = (image_field, caption_field, label_field)
        self._name, self._split = where, split
        try:
            builder = tfds.builder(where, data_dir=data_dir, file_format="array_record")
            if download:
                builder.download_and_prepare(file_format="array_record")
            self._data = builder.as_data_source(
                split=split, decoders={image_field: tfds.decode.SkipDecoding()}
            )
        except (tfds.core.DatasetNotFoundError, AssertionError, FileNotFoundError, KeyError) as e:
            raise ValueError(
                f"tfds:{where}:{split} cannot be opened: {e}. Prepare it with "
                'tfds.builder(...).download_and_prepare(file_format="array_record"), or set '
                "data.source.download=True"
            ) from e
        self._identity = [builder.info.full_name, split, len(self._data)]
        features = builder.info.features
        for field in (image_field, caption_field):
            if field is not None and field not in features:
                raise ValueError(f"tfds:{where} has no {field!r}; it has {', '.join(features)}")
        self.class_names = None
        if label_field in features:
            self.class_names = _class_names(where, features[label_field], class_names)
        if caption_field is None and self.class_names is None:
            raise ValueError(
                f"tfds:{where} has the fields {', '.join(features)}: set data.source.caption_field"
            )

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, index: int) -> Example:
        row = self._data[index]
        image_field, caption_field, label_field = self._fields
        key = f"{self._name}:{self._split}:{index}"
        example: Example = {"image": row[image_field], "text": "", "key": key}
        if self.class_names is not None:
            example["label"] = int(row[label_field])
            if example["label"] < 0:
                raise SampleError("missing_label", "the example has no label", key)
            example["text"] = self.class_names[example["label"]]
        if caption_field is not None:
            texts = row[caption_field]
            one = isinstance(texts, bytes | str)
            example["text"] = text_of(texts if one else list(texts), key)
        return example

    def fingerprint(self) -> str:
        """SHA-256 of the dataset's full name with version, the split, the count and the fields."""
        identity = ["tfds/1", *self._identity, self._fields, self.class_names]
        return hashlib.sha256(json.dumps(identity).encode()).hexdigest()


def _class_names(where: str, feature, given: Sequence[str] | None) -> tuple[str, ...]:
    names = tuple(given) if given is not None else tuple(feature.names)
    if len(names) != feature.num_classes:
        raise ValueError(
            f"tfds:{where} has {feature.num_classes} classes, class_names has {len(names)} names"
        )
    if given is None and all(_MEANINGLESS.fullmatch(name) for name in names):
        raise ValueError(
            f"tfds:{where} calls its classes {', '.join(names[:3])} ...: give their names in "
            "data.source.class_names"
        )
    return names if given is not None else tuple(name.replace("_", " ") for name in names)
