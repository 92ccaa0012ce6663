"""A TFDS builder of image-caption data, for those who prepare with TensorFlow Datasets.

    from clipjax.data.packing.tfds_builder import ImageCaptions

    ImageCaptions(
        config=ImageCaptions.config_of("flowers", {"train": "folder:/data/flowers"}),
        data_dir="/data/tfds",
    ).download_and_prepare(file_format="array_record")

Then `tfds:image_captions/flowers:train?text_field=captions&data_dir=/data/tfds` is a source.
`languages` says of every caption which it is in, and the source gives a map of them. Large sets are
prepared by Beam (`pip install apache-beam`), one task a range of examples: `config_of(...,
beam=True)`, and a runner in `download_config`. Importing this module imports tensorflow_datasets,
not TensorFlow.
"""

import dataclasses
import functools
import io
import json
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import tensorflow_datasets as tfds
from absl import logging

from clipjax.data.captions import flatten
from clipjax.data.packing.packer import Packing, encode
from clipjax.data.source import SampleError, read_example
from clipjax.data.sources import make_source

_SOURCES = "sources.json"  # beside the prepared files: the fingerprint of what each split is
RANGE = 1000  # examples of one Beam task


@dataclasses.dataclass
class Sources(tfds.core.BuilderConfig):
    """What is prepared."""

    sources: Mapping[str, str] = dataclasses.field(default_factory=dict)
    max_bad_fraction: float = 0.01
    beam: bool = False


class ImageCaptions(tfds.core.GeneratorBasedBuilder):
    """Pictures with captions, and their keys; pictures stay encoded as they are.

    A split of which too much is unusable is a ValueError, and nothing is left of it.
    """

    VERSION = tfds.core.Version("1.1.0")
    RELEASE_NOTES: ClassVar = {"1.1.0": "The captions' languages."}
    BUILDER_CONFIG_CLASS = Sources
    pkg_dir_path = None

    @staticmethod
    def config_of(name: str, sources: Mapping[str, str], **options: Any) -> Sources:
        """Makes the config of a dataset."""
        if not sources:
            raise ValueError(f"image_captions/{name} has no splits: give {{'train': SPEC}}")
        return Sources(name=name, sources=dict(sources), **options)

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            "image": tfds.features.Image(shape=(None, None, None)),
            "captions": tfds.features.Sequence(tfds.features.Text()),
            "languages": tfds.features.Sequence(tfds.features.Text()),
            "key": tfds.features.Text(),
        }
        return tfds.core.DatasetInfo(
            builder=self,
            description="Image-caption pairs, packed by clipjax.",
            features=tfds.features.FeaturesDict(features),
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        generate = self._beam if self.builder_config.beam else self._generate_examples
        return {split: generate(spec) for split, spec in self.builder_config.sources.items()}

    def download_and_prepare(self, **options: Any) -> None:
        """Prepares the dataset; what is prepared already has to be of the same data.

        Raises:
            ValueError: it is of other data, or too many examples are unusable.
        """
        sources = self.builder_config.sources.items()
        wanted = {split: make_source(spec).fingerprint() for split, spec in sources}
        written = self.data_path / _SOURCES
        if self.data_path.exists():  # where TFDS itself would do nothing, and not say so
            if not written.exists() or json.loads(written.read_text()) != wanted:
                raise ValueError(
                    f"{self.data_path} holds other data, or what was not finished: give another "
                    "name or data_dir, or delete it"
                )
            return
        super().download_and_prepare(**options)
        written.write_text(json.dumps(wanted))

    def _download_and_prepare(self, dl_manager: Any, download_config: Any) -> None:
        super()._download_and_prepare(dl_manager, download_config)
        if download_config.max_examples_per_split is not None:
            return  # a part only, for a trial
        # Beam's tasks do not know of one another: what they left out is seen at the end.
        for split, spec in self.builder_config.sources.items():
            total = len(make_source(spec))
            self._check_bad(spec, total - self.info.splits[split].num_examples, total)

    def _check_bad(self, spec: str, bad: int, total: int) -> None:
        if bad > self.builder_config.max_bad_fraction * total:
            raise ValueError(
                f"{bad} of {total} examples of {spec} are unusable (the log names them); allowed "
                f"is a fraction of {self.builder_config.max_bad_fraction}: give "
                "config_of(..., max_bad_fraction=0.9)"
            )

    def _generate_examples(self, spec: str) -> Iterator[tuple[int, dict[str, Any]]]:
        source, bad = make_source(spec), 0
        for index in range(len(source)):
            rows = list(_rows(source, index))
            yield from rows
            bad += not rows
            self._check_bad(spec, bad, len(source))

    def _beam(self, spec: str) -> Any:
        beam = tfds.core.lazy_imports.apache_beam
        starts = range(0, len(make_source(spec)), RANGE)
        return beam.Create(list(starts)) | beam.FlatMap(functools.partial(examples_from, spec))


def examples_from(spec: str, start: int) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows of one Beam task; it opens the source anew, on whichever machine it runs."""
    source = make_source(spec)
    for index in range(start, min(start + RANGE, len(source))):
        yield from _rows(source, index)


def _rows(source: Any, index: int) -> Iterator[tuple[int, dict[str, Any]]]:
    """Gives the row of an example, or nothing, with the reason in the log."""
    try:
        example = read_example(source, index)
        _, image = encode(example["image"], Packing())
        captions = list(flatten(example["text"], ""))
        if not captions:
            raise SampleError("text_empty", "the caption is empty", example["key"])
    except SampleError as error:
        logging.warning("left out: %s", error)
        return
    yield (
        index,
        {
            "image": io.BytesIO(image),
            "captions": [text for _, text in captions],
            "languages": [language for language, _ in captions],
            "key": example["key"],
        },
    )
