"""Datasets prepared by TensorFlow Datasets as ArrayRecord, read without TensorFlow."""

import concurrent.futures
import contextlib
import itertools
import json
import os
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from array_record.python import array_record_module

from clipjax.data.captions import check_how
from clipjax.data.classes.matching import choose_names
from clipjax.data.packed.records import READER_OPTIONS, record_errors
from clipjax.data.source import Example, SampleError, embedded_pictures, place_of
from clipjax.data.sources.fields import group_fields, group_text, renamed, text_of
from clipjax.data.storage.files import read, stat
from clipjax.data.storage.paths import DataPath
from clipjax.files import sha256

# Names that mean nothing to a text encoder: WordNet ids, paths, and numbers.
_MAX_CLASSES = 1 << 20
_MEANINGLESS = re.compile(r"\d+|n\d{8}|/.*")
_EDGE = 64 << 10  # bytes of a file's start and end that its identity holds
_THREADS = 16
_OPENING = threading.Lock()


class Tfds:
    """A split of a dataset of the TFDS catalogue, images left encoded.

    Every file of the split is opened once, and has to hold as many records as the dataset says.
    The fingerprint holds these numbers, and sizes and edges of the files: the same dataset, once
    more prepared by another version of TFDS, may be other data.

    Args:
        where: name of the dataset, with config and version if needed.
        split: e.g. `train`, `test`, `train[:10%]`.
        text_field: the feature that holds the caption or captions; by default the text is
            the name of the label.
        label_field: the feature that holds the label; by default `label` if there is one. Where
            there are captions, and the classes have no names, it is left out.
        group_field: features, of which an evaluation counts by group: texts, numbers or labels.
        language: which caption of a map is used, or of captions of which the feature `languages`
            says it, as `clipjax.data.packing.tfds_builder` writes them; by default all are.
        class_names: names of the labels. Those of TFDS serve only where they are words.

    Raises:
        ValueError: if split, field or class names are missing, the data is not prepared, or a file
            is missing or damaged.
    """

    positional_keys = True  # numbers of rows

    def __init__(
        self,
        where: str,
        split: str | None = None,
        *,
        image_field: str = "image",
        text_field: str | None = None,
        label_field: str | None = None,
        class_names: Sequence[str] | None = None,
        group_field: str | Sequence[str] = (),
        language: str | None = None,
        captions: str | None = None,
        data_dir: str | None = None,
        download: bool = False,
        caption_field: str | None = None,
    ):
        check_how(captions, f"tfds:{where}")
        caption_field = renamed("text_field", text_field, "caption_field", caption_field, where)
        import tensorflow_datasets as tfds  # slow to import, and few runs need it

        if not split:
            raise ValueError(f"tfds:{where} names no split, e.g. tfds:{where}:train")
        self._name, self._split = where, split
        try:
            with _known_features(where):
                builder = tfds.builder(where, data_dir=data_dir, file_format="array_record")
                if download:
                    builder.download_and_prepare(file_format="array_record")
                self._data = builder.as_data_source(
                    split=split, decoders={image_field: tfds.decode.SkipDecoding()}
                )
        except (tfds.core.DatasetNotFoundError, AssertionError, FileNotFoundError, KeyError) as e:
            raise ValueError(
                f"tfds:{where}:{split} cannot be opened: {_first_line(e)}. If it is prepared, say "
                "where: ?data_dir=DIR; else prepare it with "
                'tfds.builder(...).download_and_prepare(file_format="array_record"), or give '
                "?download=true"
            ) from e
        except (ValueError, OSError, MemoryError):  # sentences already
            raise
        except Exception as e:  # of JSON, of protocol buffers, of paths: a folder may hold anything
            raise ValueError(
                f"tfds:{where} is damaged: {type(e).__name__}: {_first_line(e):.300}"
            ) from e
        features = builder.info.features
        if label_field is None and "label" in features:
            is_label = isinstance(features["label"], tfds.features.ClassLabel)
            label_field = "label" if is_label else None
        self._fields = (image_field, caption_field, label_field)
        self.group_names = group_fields(group_field)
        _check_fields(where, features, self._fields, self.group_names)
        self._group_features = {name: features[name] for name in self.group_names}
        self._language, self.captions = language, captions
        self._with_languages = (
            caption_field == "captions"
            and "languages" in features
            and _is_text(features["languages"])
        )
        self.class_names = self._label_places = self.matched = None
        if label_field is not None:
            self.class_names, self._label_places, self.matched = class_names_of(
                where, features[label_field], class_names, needed=caption_field is None
            )
        elif caption_field is None:
            raise ValueError(
                f"tfds:{where} has the fields {_told(features)}: give ?text_field=... in the SPEC"
            )
        self._parts = builder.info.splits[split].file_instructions
        for part in self._parts:  # the folder itself says what its files are called
            DataPath(os.fspath(builder.data_dir)).below(os.fspath(part.filename))
        self._ends = list(itertools.accumulate(part.take for part in self._parts))
        with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
            shards = list(pool.map(_open_shard, self._parts))
        self._identity = [builder.info.full_name, split, shards]

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, index: int) -> Example:
        with record_errors(self._place(index)):
            row = self._data[index]
        image_field, caption_field, label_field = self._fields
        key = f"{self._name}:{self._split}:{index}"
        example: Example = {"image": row[image_field], "text": "", "key": key}
        if self.class_names is not None:
            example["label"] = int(row[label_field])
            if example["label"] < 0:
                raise SampleError("missing_label", "the example has no label", key)
            if self._label_places is not None:
                example["label"] = self._label_places[example["label"]]
            example["text"] = self.class_names[example["label"]]
        if self.group_names:
            named = self._group_features.items()
            example["groups"] = {n: _group_of(feature, row[n], key) for n, feature in named}
        if caption_field is not None:
            texts = row[caption_field]
            if not isinstance(texts, bytes | str | Mapping):
                languages = row["languages"] if self._with_languages else None
                texts = _by_language(texts, languages)
            example["text"] = text_of(texts, key, self._language, self.captions)
        return example

    def pictures(self) -> Iterator[bytes | None]:
        """Says whose picture each record holds: equal bytes are one."""
        return embedded_pictures(self)

    def fingerprint(self) -> str:
        """SHA-256 of the dataset's full name with version, the split, its files, and the fields."""
        identity = ["tfds/2", *self._identity, self._fields, self.class_names, self._language]
        identity += [self.captions] if self.captions == "lines" else []
        identity += [self.group_names] if self.group_names else []
        identity += [] if self._label_places is None else [self._label_places]
        return sha256(json.dumps(identity))

    def _place(self, index: int) -> str:
        """Names the file and the number in it: a run of errors tells which file is damaged."""
        number, place = place_of(index, self._ends)
        part = self._parts[number]
        return f"{os.path.basename(part.filename)}:{part.skip + place}"


@contextlib.contextmanager
def _known_features(where: str) -> Iterator[None]:
    """While a dataset is opened, has TFDS import no class of a field that its folder names.

    Such a folder is data. What this process has imported for itself, and TFDS's own, are known.
    """
    from tensorflow_datasets.core.features.feature import FeatureConnector

    given = FeatureConnector.__dict__["cls_from_name"]

    def known(cls: type, name: str) -> type:
        own = name.startswith("tensorflow_datasets.")
        if not own and name not in FeatureConnector._registered_features:
            raise ValueError(
                f"tfds:{where} names the class {name!r:.200} for a field; nothing is imported for "
                "a dataset: if you trust it, import its module in your config file"
            )
        return given.__func__(cls, name)

    with _OPENING:
        FeatureConnector.cls_from_name = classmethod(known)
        try:
            yield
        finally:
            FeatureConnector.cls_from_name = given


def _by_language(texts: Any, languages: Any) -> Any:
    """Several captions, or a map of them where languages stand beside them."""
    found: dict[str, list[Any]] = {}
    for text, language in zip(texts, texts if languages is None else languages, strict=True):
        found.setdefault("" if languages is None else language.decode(), []).append(text)
    return found.get("", []) if found.keys() <= {""} else found


def _first_line(error: BaseException) -> str:
    """What TFDS says, without its advice about its own catalogue."""
    return str(error).strip().partition("\n")[0].rstrip(".")


def _open_shard(part: Any) -> list[Any]:
    """Compares a file of a split with what the dataset says of it; gives what identifies it.

    ArrayRecord itself opens a truncated file without complaint and says that it has 0 records.
    """
    path = DataPath(os.fspath(part.filename))
    try:
        size = stat(path).size
        count = array_record_module.ArrayRecordReader(path.url, READER_OPTIONS).num_records()
    except (FileNotFoundError, RuntimeError) as error:
        raise ValueError(
            f"{path} is missing or damaged: {error}. Prepare the dataset anew"
        ) from error
    if count != part.examples_in_shard:
        raise ValueError(
            f"{path} opens with {count} records, the dataset says {part.examples_in_shard}: the "
            "file is damaged. Prepare the dataset anew"
        )
    edge = min(size, _EDGE)
    content = read(path, 0, edge) + read(path, size - edge, edge)
    return [count, part.skip, part.take, size, sha256(content)]


def _group_of(feature: Any, value: Any, key: str) -> str:
    """The group that a feature's value names: that of a label by its name."""
    if hasattr(feature, "int2str"):
        return feature.int2str(int(value)) if int(value) >= 0 else ""
    return group_text(value, key)


def _check_fields(
    where: str,
    features: Mapping[str, Any],
    fields: tuple[str, str | None, str | None],
    groups: Sequence[str],
) -> None:
    """Refuses a field that is not there, or holds something else."""
    import tensorflow_datasets as tfds

    image, caption, label = fields
    for option, field, fits, what in (
        ("image_field", image, lambda f: isinstance(f, tfds.features.Image), "Image"),
        ("text_field", caption, _is_text, "Text, or a list or map of these"),
        ("label_field", label, lambda f: isinstance(f, tfds.features.ClassLabel), "ClassLabel"),
        *(("group_field", g, lambda f: f.shape == (), "one text, number or label") for g in groups),
    ):
        if field is not None and (field not in features or not fits(features[field])):
            raise ValueError(
                f"tfds:{where} has no {field!r} that is {what}; it has {_told(features)}: give "
                f"?{option}=... in the SPEC"
            )


def _is_text(feature: Any) -> bool:
    import tensorflow_datasets as tfds

    if isinstance(feature, tfds.features.FeaturesDict):
        return all(_is_text(part) for part in feature.values())
    if isinstance(feature, tfds.features.Sequence):
        return isinstance(feature.feature, tfds.features.Text)
    return isinstance(feature, tfds.features.Text)


def _told(features: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} ({type(feature).__name__})" for name, feature in features.items())


def class_names_of(
    where: str, feature: Any, given: Sequence[str] | None, *, needed: bool
) -> tuple[tuple[str, ...] | None, tuple[int, ...] | None, str | None]:
    """What `choose_names` gives of the names that are given, else those of TFDS if they are words.

    The names are None if none are needed.
    """
    if (feature.num_classes or 0) > _MAX_CLASSES:
        raise ValueError(
            f"tfds:{where} says that it has {feature.num_classes:,} classes; at most "
            f"{_MAX_CLASSES:,} are read"
        )
    names = tuple(feature.names)
    if given is not None:
        return choose_names(given, names, f"tfds:{where}")
    numbers = [name for name in names if name.isdecimal()]
    if not numbers and not all(_MEANINGLESS.fullmatch(name) for name in names):
        return tuple(name.replace("_", " ") for name in names), None, None
    if not needed:
        return None, None, None
    raise ValueError(
        f"tfds:{where} calls its classes {', '.join((numbers or names)[:3])} ...: give their names "
        "by ?class_names=FILE in the SPEC"
    )
