"""Captions as COCO publishes them, and the splits of Karpathy: one JSON file, several a picture."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from clipjax.data.captions import as_lines, check_how
from clipjax.data.source import Example, SampleError
from clipjax.data.sources.fields import whole_text
from clipjax.data.sources.folder import name_of_picture, read_named, root_identity
from clipjax.data.storage.files import is_folder, read_given
from clipjax.data.storage.paths import data_path
from clipjax.data.storage.text_files import decode_text
from clipjax.files import sha256
from clipjax.strict_json import parse_fields


class Coco:
    """Pictures, each with all of its captions, in the order of the file.

    The file holds `images` (`id`, `file_name`) and `annotations` (`image_id`, `caption`), as
    COCO's `captions_val2017.json` does; or `images` with `sentences` (`raw`), `filename`,
    `filepath` and `split`, as the splits of Karpathy for COCO and Flickr30k do. A key is the
    picture's path. The fingerprint holds the file, not the pictures.

    Args:
        where: the JSON file.
        split: a split of Karpathy's, e.g. `test`; without it, all of them.
        root: folder that the names of pictures start from and that all have to lie in; by default
            the folder `val2017` beside that of `captions_val2017.json`, else the file's own.
    """

    class_names = None

    def __init__(
        self,
        where: str,
        split: str | None = None,
        *,
        captions: str | None = None,
        root: str | None = None,
    ):
        check_how(captions, where)
        path = data_path(where)
        content = read_given(where)
        text = decode_text(content, where)
        try:
            about = parse_fields(text)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{where} is no JSON: {error}") from error
        images = about.get("images") if isinstance(about, dict) else None
        if not isinstance(images, list) or not all(isinstance(i, dict) for i in images):
            raise ValueError(f"{where} is no file of captions: it holds no list of `images`")
        if "annotations" in about:
            if split is not None:
                raise ValueError(
                    f"{where} is of one split, and does not say which: leave out :{split}"
                )
            found = _of_annotations(images, about["annotations"], where)
        else:
            found = _of_sentences(images, split, where)
        self._names, self._texts = [name for name, _ in found], [texts for _, texts in found]
        self.captions = captions
        # That of the pictures is called by what follows the last `_` of the file's name.
        default, annotated = path.parent, path.parent.name == "annotations"
        beside = path.parent.parent / path.name.removesuffix(path.suffix).rpartition("_")[2]
        if annotated and is_folder(beside):
            default = beside
        self._root = data_path(root) if root else default
        # What a default root is called depends on what stands beside the file: not on the machine.
        identity = ["coco/1", split, captions if captions == "lines" else None]
        identity.append(root_identity(self._root, path.parent))
        self._fingerprint = sha256(json.dumps(identity), content)

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, index: int) -> Example:
        key, texts = self._names[index], self._texts[index]
        if not texts:
            raise SampleError("missing_text", "the file has no caption of the picture", key)
        text = texts if len(texts) > 1 else texts[0]
        text = as_lines(text) if self.captions == "lines" else text
        return {"image": read_named(self._root, key, key), "text": text, "key": key}

    def keys(self) -> Iterator[str]:
        """Gives the keys of all examples in order."""
        return iter(self._names)

    def pictures(self) -> Iterator[str | None]:
        """Says whose picture each example names: equal paths are one."""
        return (name_of_picture(self._root, name) for name in self._names)

    def fingerprint(self) -> str:
        """SHA-256 of the file, of the split, and of how `root` lies to it."""
        return self._fingerprint


Found = list[tuple[str, tuple[str, ...]]]


def _of_annotations(images: list[dict[str, Any]], annotations: Any, where: str) -> Found:
    names: dict[Any, str] = {}
    for image in images:
        number, name = image.get("id"), image.get("file_name")
        if not isinstance(number, int | str) or not isinstance(name, str) or not name:
            raise ValueError(f"{where}: an image lacks `id` or `file_name`: {image!r:.80}")
        if number in names:
            raise ValueError(f"{where} has two images of the id {number}")
        names[number] = whole_text(name)
    texts: dict[Any, list[str]] = {number: [] for number in names}
    for annotation in annotations if isinstance(annotations, list) else [annotations]:
        fields = annotation if isinstance(annotation, Mapping) else {}
        number, caption = fields.get("image_id"), fields.get("caption")
        if not isinstance(caption, str):
            raise ValueError(
                f"{where}: an annotation has no `caption`: {annotation!r:.80}; of COCO's files, "
                "those called captions_... have them"
            )
        if not isinstance(number, int | str) or number not in texts:
            raise ValueError(
                f"{where}: a caption is of the image {number!r:.40}, which is not there"
            )
        if caption.strip():
            texts[number].append(whole_text(caption.strip()))
    return [(name, tuple(texts[number])) for number, name in names.items()]


def _of_sentences(images: list[dict[str, Any]], split: str | None, where: str) -> Found:
    splits = {str(image.get("split")) for image in images}
    if split is not None and split not in splits:
        raise ValueError(f"{where} has no split {split!r}; it has {', '.join(sorted(splits))}")
    found = []
    for image in images:
        name, folder, sentences = (image.get(f) for f in ("filename", "filepath", "sentences"))
        if not isinstance(name, str) or not name or not isinstance(sentences, list):
            raise ValueError(
                f"{where} has neither `annotations` nor, of each image, `filename` and "
                f"`sentences`: {image!r:.80}"
            )
        if split is None or image.get("split") == split:
            raw = (s.get("raw") for s in sentences if isinstance(s, dict))
            texts = tuple(whole_text(t.strip()) for t in raw if isinstance(t, str) and t.strip())
            whole = f"{folder}/{name}" if isinstance(folder, str) and folder else name
            found.append((whole_text(whole), texts))
    return found
