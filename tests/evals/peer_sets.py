"""Small sets as others publish them, which CLIP_benchmark and `clipjax eval` both read.

folder/model               a small model in OpenCLIP's files
folder/KIND/test/*.tar     `classes`, `several` (labels a picture) and `captions`, as shards
folder/images/*.png        pictures of swap_obj.json (SugarCrepe's form), examples.jsonl
"""

import io
import json
import tarfile

import numpy as np
from PIL import Image
from small_weights import noise, small

from clipjax.interop import Weights
from clipjax.interop.formats import FORMATS
from clipjax.interop.tensors import of_array

NUM = 48
NAMES = ("cat", "old bicycle", "two trees at night", "a river, seen from a train", "moon")
NAMES += ("green glass bottles", "an empty street in winter")
TOWER = {"width": 32, "depth": 1, "num_heads": 1, "mlp_dim": 128}
SPEC = small(
    "ViT-B-32-quickgelu",
    embed_dim=24,
    image_size=32,
    image={**TOWER, "patch_size": 8},
    text={**TOWER, "context_length": 24},
)
SHARDS = {"classes": "zero_shot", "several": "zero_shot", "captions": "retrieval"}
GROUPS = {"sugarcrepe": "swap_obj.json", "winoground": "examples.jsonl"}


def weights():
    """Weights of such sizes that embeddings of pictures, and of texts, lie far apart."""

    def scaled(name, x):
        if x.ndim < 2:
            return (1 if name.endswith("scale") else 0) + 0.1 * x
        inputs = x.shape[0] if "qkv" in name else x.shape[-2]
        return x if "embed" in name else 2 * x / np.sqrt(inputs)

    leaves = {name: scaled(name, x).astype(np.float32) for name, x in noise(SPEC).items()}
    leaves["logit_scale"] = np.array(np.log(100), np.float32)
    return Weights(SPEC, {name: of_array(x) for name, x in leaves.items()}, source="noise")


def picture(number):
    """A PNG of 16 squares, so that embeddings lie far apart."""
    squares = np.random.default_rng(number).integers(0, 256, (4, 4, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(squares).resize((56, 56), Image.Resampling.NEAREST).save(file, "PNG")
    return file.getvalue()


def write_sets(folder):
    """Writes the model, the shards and the files."""
    FORMATS["open_clip"].write(folder / "model", weights())
    random = np.random.default_rng(0)
    labels = random.permutation(np.arange(NUM) % len(NAMES))
    marks = random.random((NUM, len(NAMES))) < 0.3
    marks[0] = True  # each class occurs
    captions = []
    for n in range(NUM):  # of no two pictures alike: which of equals comes first is left open there
        name, place = NAMES[n % 7], NAMES[(3 * n + n // 7) % 7]
        captions.append("\n".join(f"new {n} {name} with {c} in {place}" for c in range(1 + n % 3)))
    write_classes(folder / "classes", [{"cls": b"%d" % label} for label in labels])
    write_classes(folder / "several", [{"npy": as_npy(row)} for row in marks])
    (folder / "several" / "dataset_type.txt").write_text("multilabel\n")
    write_shards(folder / "captions", [{"txt": text.encode()} for text in captions])
    (folder / "captions" / "dataset_type.txt").write_text("retrieval\n")
    (folder / "images").mkdir()
    for number in range(NUM):
        (folder / "images" / f"{number}.png").write_bytes(picture(number))
    (folder / "swap_obj.json").write_text(
        json.dumps(
            {
                str(3 * n): {
                    "filename": f"{n}.png",
                    "caption": f"a dog and {n} cats",
                    "negative_caption": f"{n} dogs and a cat",
                }
                for n in range(NUM)
            }
        )
    )
    groups = [
        {"id": n, "image_0": f"{2 * n}", "image_1": f"{2 * n + 1}", "collapsed_tag": "Object"}
        | {"caption_0": f"a man near {n} trees", "caption_1": f"trees near {n} men"}
        for n in range(NUM // 2)
    ]
    (folder / "examples.jsonl").write_text("".join(json.dumps(g) + "\n" for g in groups))
    return folder


def write_classes(root, records):
    write_shards(root, records)
    (root / "classnames.txt").write_text("\n".join(NAMES) + "\n")
    templates = "a {c} picture\na photo of many {c}.\n{c}\n"
    (root / "zeroshot_classification_templates.txt").write_text(templates)


def write_shards(root, records):
    """Two shards in CLIP_benchmark's layout; a record is what stands beside a picture."""
    (root / "test").mkdir(parents=True)
    (root / "test" / "nshards.txt").write_text("2\n")
    for shard in range(2):
        with tarfile.open(root / "test" / f"{shard}.tar", "w") as archive:
            for number in range(shard, len(records), 2):
                for suffix, content in {"png": picture(number), **records[number]}.items():
                    entry = tarfile.TarInfo(f"s{number:05d}.{suffix}")
                    entry.size = len(content)
                    archive.addfile(entry, io.BytesIO(content))


def as_npy(row):
    file = io.BytesIO()
    np.save(file, row.astype(np.int64))
    return file.getvalue()


def evaluate_sets(folder, command):
    """What `clipjax eval` gives for all of them: name -> metrics with CLIP_benchmark's keys."""
    base = ("eval", f"--checkpoint={folder / 'model'}", "--preprocess=open_clip", "--batch_size=16")
    flags = [f"--{flag}=tar:{folder}/{name}/test" for name, flag in SHARDS.items()]
    done = command(*base, *flags, "--format=clip_benchmark", f"--json={folder}/{{dataset}}.json")
    assert done.code == 0, done.err
    found = {}
    for name in SHARDS:
        (path,) = folder.glob(f"*_{name}_test.json")
        found[name] = json.loads(path.read_text())["metrics"]
    specs = [f"{k}:{folder}/{file}?root={folder}/images" for k, file in GROUPS.items()]
    flags = [f"--eval=compositional={spec}" for spec in specs]
    done = command(*base, *flags, f"--json={folder}/groups.json")
    assert done.code == 0, done.err
    entries = json.loads((folder / "groups.json").read_text())["evaluations"].values()
    for kind, entry in zip(GROUPS, sorted(entries, key=lambda e: e["spec"]), strict=True):
        assert entry["spec"].startswith(kind)
        found[kind] = entry["metrics"]
    return found


# Their names of the scores of a group, by ours.
SCORES = {"text_score": "text_acc", "image_score": "image_acc", "group_score": "acc"}
