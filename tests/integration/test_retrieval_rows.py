"""24 pictures with five captions each, as tables, shards and folders hold them, and a model that
makes no mistake: however the rows are cut, it finds all of them."""

import io
import json
import tarfile

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from clipjax.evals import pictures, retrieval
from clipjax.evaluate import evaluate_checkpoint
from clipjax.inference import Model

PICTURES, CAPTIONS = 24, 5


def png(number):
    out = io.BytesIO()
    Image.new("RGB", (32, 32), (10 * number, 0, 0)).save(out, "PNG")
    return out.getvalue()


def caption(number, turn):
    return f"{chr(97 + number)}{chr(97 + number)} in words {turn}"


@pytest.fixture(scope="module")
def specs(tmp_path_factory):
    """SPEC -> rows."""
    root = tmp_path_factory.mktemp("rows")
    order = np.random.default_rng(0).permutation(PICTURES * CAPTIONS)
    rows = [divmod(int(place), CAPTIONS) for place in order]
    names = [f"{number}.png" for number, _ in rows]
    texts = [caption(*row) for row in rows]
    (root / "p").mkdir()
    whole = ["\n".join(caption(n, turn) for turn in range(CAPTIONS)) for n in range(PICTURES)]
    for number in range(PICTURES):
        (root / f"p/{number}.png").write_bytes(png(number))
        (root / f"p/{number}.txt").write_text(whole[number])
    pairs = list(zip(names, texts, strict=True))
    (root / "p/t.csv").write_text("\n".join(["image,caption", *(",".join(pair) for pair in pairs)]))
    lines = [json.dumps({"image": f"./{name}", "text": text}) for name, text in pairs]
    (root / "p/t.jsonl").write_text("\n".join(lines))
    pq.write_table(pa.table({"image": names, "text": texts}), root / "p/paths.parquet")
    content = [png(number) for number, _ in rows]
    pq.write_table(pa.table({"image": content, "text": texts}), root / "bytes.parquet")
    for shard, members in (
        ("flat", [(png(n), text) for (n, _), text in zip(rows, texts, strict=True)]),
        ("lines", [(png(n), text) for n, text in enumerate(whole)]),
    ):
        with tarfile.open(root / f"{shard}.tar", "w") as archive:
            for number, (image, text) in enumerate(members):
                for suffix, data in (("png", image), ("txt", text.encode())):
                    entry = tarfile.TarInfo(f"{number:04d}.{suffix}")
                    entry.size = len(data)
                    archive.addfile(entry, io.BytesIO(data))
    # As Flickr30k, COCO and CLIP_benchmark publish theirs.
    table = [f"{name}| {turn}| {text}" for (_, turn), (name, text) in zip(rows, pairs, strict=True)]
    table.insert(0, "image_name| comment_number| comment")
    (root / "p/results.csv").write_text("\n".join(table))
    images = [{"id": 7 * n, "file_name": f"{n}.png"} for n in range(PICTURES)]
    captions = [{"image_id": 7 * n, "caption": caption(n, turn)} for n, turn in rows]
    about = json.dumps({"images": images, "annotations": captions})
    (root / "p/captions.json").write_text(about)
    (root / "wds/test").mkdir(parents=True)
    (root / "wds/dataset_type.txt").write_text("retrieval\n")
    (root / "wds/test/nshards.txt").write_text("1\n")
    (root / "wds/test/0.tar").write_bytes((root / "lines.tar").read_bytes())
    flat, few = PICTURES * CAPTIONS, PICTURES
    return {
        f"csv:{root}/p/results.csv?separator=pipe": flat,
        f"coco:{root}/p/captions.json": few,
        f"tar:{root}/wds/test": few,
        f"csv:{root}/p/t.csv": flat,
        f"jsonl:{root}/p/t.jsonl": flat,
        f"parquet:{root}/p/paths.parquet": flat,
        f"parquet:{root}/bytes.parquet": flat,
        f"tar:{root}/flat.tar": flat,
        f"tar:{root}/lines.tar": few,
        f"folder:{root}/p": few,
    }


@pytest.fixture
def perfect(reference, monkeypatch):
    """Every picture, and every caption of it, is embedded as its number."""
    tokenizer = Model.from_checkpoint(reference).tokenizer
    known = [(n, turn) for n in range(PICTURES) for turn in range(CAPTIONS)]
    tokens = jnp.asarray(tokenizer([caption(*one) for one in known]))
    owners = jnp.asarray([number for number, _ in known])

    @jax.jit
    def embed(params, rows):
        if rows.ndim == 4:
            numbers = (rows[:, 16, 16, 0].astype(jnp.int32) + 5) // 10
        else:
            numbers = owners[jnp.all(rows[:, None] == tokens, -1).argmax(-1)]
        return jax.nn.one_hot(numbers, PICTURES)

    monkeypatch.setattr(retrieval, "embed_fn", lambda encode_fn, mesh: embed)


def recalls(results):
    return {name: value for name, value in results.items() if name.endswith("recall@1")}


def test_perfect_encoders_find_everything(specs, perfect, reference):
    results = evaluate_checkpoint(reference, retrieval=list(specs))
    assert len(recalls(results)) == 2 * len(specs)
    assert set(recalls(results).values()) == {1.0}
    counts = {name: [] for name in ("num_images", "num_texts", "num_rows")}
    for name, found in counts.items():
        found += [value for key, value in results.items() if key.endswith(name)]
    assert counts["num_images"] == [PICTURES] * len(specs)
    assert counts["num_texts"] == [PICTURES * CAPTIONS] * len(specs)
    assert counts["num_rows"] == list(specs.values())


def test_rows_that_are_taken_for_pictures_are_seen(specs, perfect, reference, monkeypatch):
    monkeypatch.setattr(pictures, "pictures_of", lambda source: range(len(source)))
    table = next(iter(specs))
    found = recalls(evaluate_checkpoint(reference, retrieval=[table]))
    by_text, by_image = sorted(found.values())
    assert by_text == pytest.approx(0.2) and by_image < 0.5
