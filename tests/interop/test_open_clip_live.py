"""open_clip itself beside clipjax: numbers, files both ways, pictures and captions end to end."""

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image
from published_weights import weight

from clipjax.config import merge, to_plain
from clipjax.inference import Model
from clipjax.interop import Hints, Weights, expected_shapes, export
from clipjax.interop.open_clip import format as open_clip_format
from clipjax.interop.open_clip import leaves, tokenizer, trunks
from clipjax.interop.open_clip.config_out import config_of_spec
from clipjax.interop.tensors import of_array
from clipjax.models import MODELS, build_model
from clipjax.models.layers_layout import stack_layers
from clipjax.tokenizers import make_tokenizer
from clipjax.trees import unflatten_names

# Not from the library that is tested; open_clip and torch warn of their own use of themselves.
pytestmark = [pytest.mark.interop, pytest.mark.filterwarnings("default")]

TESTS = Path(__file__).parent.parent
TINY = {
    "embed_dim": 64,
    "image_size": 64,
    "image": {"width": 64, "depth": 2, "num_heads": 1, "mlp_dim": 256},
    "text": {"width": 64, "depth": 2, "num_heads": 1, "mlp_dim": 256},
}
CAPTIONS = [
    "a photo of a Cat",
    "two dogs, on the sofa!",
    "caf\u00e9 &amp; 3 \U0001f600",
    "x " * 200,
]


@pytest.fixture(scope="module")
def parity():
    """The modules parity and parity_open_clip of benchmarks/."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(TESTS.parent / "benchmarks")
        import parity
        import parity_open_clip

        yield parity, parity_open_clip


@pytest.fixture(scope="module")
def open_clip(parity):
    return parity[1].open_clip


def above_the_bars(parity, names):
    measure, cases = parity[0], parity[1].CASES
    found = {}
    for name in names:
        reference = cases[name]()
        found[name] = measure.misses(reference, measure.measure(reference))
        jax.clear_caches()
    return {name: missed for name, missed in found.items() if missed}


def test_published_models_are_within_the_bars(parity):
    assert above_the_bars(parity, [name for name in parity[1].CASES if "blocks" not in name]) == {}


def test_large_models_of_two_blocks_are_within_the_bars(parity):
    assert above_the_bars(parity, [name for name in parity[1].CASES if "blocks" in name]) == {}


def seeded_weights(spec):
    """A model of ours with the weights that OpenCLIP's names draw."""
    shapes = {
        k: of_array(np.broadcast_to(np.float32(0), x)) for k, x in expected_shapes(spec).items()
    }
    theirs = {k: weight(k, x.shape) for k, x in export(leaves(spec), shapes).items()}
    ours = {x.name: of_array(x.to_ours([theirs[k] for k in x.theirs])) for x in leaves(spec)}
    return Weights(spec, ours), theirs


@pytest.mark.parametrize(
    "row, name",
    [
        ("ViT-B-32-quickgelu", "ViT-B-32-quickgelu"),
        ("RN50", "RN50"),
        ("siglip-b-16-224", "ViT-B-16-SigLIP"),
        ("PE-Core-T-16-384", "PE-Core-T-16-384"),
    ],
)
def test_open_clip_loads_what_we_write(row, name, open_clip, tmp_path):
    found, theirs = seeded_weights(to_plain(MODELS[row]))
    open_clip_format.write(tmp_path / "out", found)
    file = str(tmp_path / "out" / "model.safetensors")
    for arguments in ((name, file), (f"local-dir:{tmp_path / 'out'}",)):
        model = open_clip.create_model(*arguments)  # strict: it raises for a name too many or few
        state = {k: x.numpy() for k, x in model.state_dict().items()}
        counters = {k for k in state if k.endswith("num_batches_tracked")}
        assert state.keys() - counters == theirs.keys()
        for key, value in theirs.items():
            np.testing.assert_array_equal(state[key], value)
    preprocess = model.visual.preprocess_cfg  # of the folder
    assert list(preprocess["mean"]) == list(found.spec["preprocess"]["mean"])
    assert preprocess["resize_mode"] == found.spec["preprocess"]["resize"]


def test_worldwide_models_pool_texts_at_their_end(open_clip, tmp_path):
    """Of MetaCLIP 2's vocabulary, in which the end of text is the id 2, and tiny towers."""
    import torch

    spec = to_plain(MODELS["ViT-H-14-worldwide-quickgelu"])
    tiny = {"embed_dim": 16, "image_size": 28, "image": {"width": 32, "depth": 2, "num_heads": 2}}
    tiny["image"]["mlp_dim"] = 128
    tiny["text"] = {"width": 16, "depth": 2, "num_heads": 2, "mlp_dim": 64, "context_length": 8}
    spec = merge(spec, tiny)
    found, _ = seeded_weights(spec)
    open_clip_format.write(tmp_path / "out", found)
    model = open_clip.create_model(f"local-dir:{tmp_path / 'out'}").eval()
    tokens = np.array([[0, 901_628, 7, 2, 1, 1, 1, 1], [0, 5, 6, 7, 8, 900_000, 9, 2]])
    with torch.no_grad():
        theirs = torch.nn.functional.normalize(model.encode_text(torch.tensor(tokens)), dim=-1)
    read = open_clip_format.read(tmp_path / "out", Hints())
    assert read.spec["text"] == found.spec["text"]
    variables = {
        "params": stack_layers(unflatten_names({k: x.read() for k, x in read.leaves.items()}))
    }
    ours = build_model(read.spec).apply(variables, tokens.astype(np.int32), method="encode_text")
    assert np.abs(np.asarray(ours) - theirs.numpy()).max() <= 2e-6
    largest = {**read.spec, "text": {**read.spec["text"], "eot_id": None}}
    other = build_model(largest).apply(variables, tokens.astype(np.int32), method="encode_text")
    assert np.abs(np.asarray(other) - theirs.numpy()).max() > 1e-2  # the control


def test_a_name_too_few_is_seen(open_clip, tmp_path):
    """The control: open_clip does not load a file that lacks a tensor."""
    spec = merge(to_plain(MODELS["ViT-B-32-quickgelu"]), TINY)
    found, theirs = seeded_weights(spec)
    open_clip_format.write(tmp_path / "out", found)
    less = {k: of_array(x) for k, x in theirs.items() if k != "ln_final.bias"}
    (tmp_path / "out" / "model.safetensors").unlink()
    open_clip_format.files.save_safetensors(tmp_path / "out" / "model.safetensors", less, {})
    with pytest.raises(RuntimeError, match=r"Missing key.*ln_final.bias"):
        open_clip.create_model(f"local-dir:{tmp_path / 'out'}")


def test_the_table_of_trunks_is_timms(parity):
    import torch

    for trunk in trunks.TRUNKS.values():
        with torch.device("meta"):
            model = parity[1].timm.create_model(trunk.name, num_classes=0)
        block = model.blocks[0]
        tanh = getattr(block.mlp.act, "approximate", "none") == "tanh" or "Tanh" in repr(
            block.mlp.act
        )
        found = (model.patch_embed.img_size[0], model.patch_embed.patch_size[0], model.embed_dim)
        found += (len(model.blocks), block.attn.num_heads, block.mlp.fc1.out_features)
        fields = ("image_size", "patch_size", "width", "depth", "num_heads", "mlp_dim")
        assert found == tuple(getattr(trunk, field) for field in fields), trunk.name
        assert tanh == (trunk.activation == "gelu_tanh"), trunk.name


def torch_file(path, parity, kind):
    """A tiny model's weights in one of the forms that files have; (file, state dict)."""
    import torch
    from open_clip.model import convert_weights_to_fp16

    config = {
        "embed_dim": 64,
        "quick_gelu": True,
        "vision_cfg": {"image_size": 64, "patch_size": 32, "layers": 2, "width": 64},
        "text_cfg": {"width": 64, "heads": 1, "layers": 2},
    }
    model = parity[1].build(config, None).eval()
    parity[1].seed(model)
    if kind == "openai":
        convert_weights_to_fp16(model)
        for name, value in (
            ("input_resolution", 64),
            ("context_length", 77),
            ("vocab_size", 49408),
        ):
            if hasattr(model, name):
                delattr(model, name)
            model.register_buffer(name, torch.tensor(value))
        inputs = torch.zeros(1, 3, 64, 64).half(), torch.zeros(1, 77, dtype=torch.long)
        torch.jit.trace(model, inputs, check_trace=False).save(str(path))
    elif kind == "training":
        state = {f"module.{k}": x for k, x in model.state_dict().items()}
        optimizer = torch.optim.AdamW(model.parameters()).state_dict()
        torch.save({"epoch": 3, "state_dict": state, "optimizer": optimizer, "name": "x"}, path)
    else:
        torch.save(model.state_dict(), path)
    return {k: x.float().numpy() for k, x in model.state_dict().items()}


@pytest.mark.parametrize("kind, hint", [("openai", None), ("training", "gelu"), ("plain", "gelu")])
def test_files_of_torch(kind, hint, parity, tmp_path):
    state = torch_file(tmp_path / "x.pt", parity, kind)
    assert open_clip_format.recognises(tmp_path / "x.pt")
    found = open_clip_format.read(tmp_path / "x.pt", Hints(activation=hint))
    assert found.spec["text"]["activation"] == (hint or "quick_gelu")
    for entry in leaves(found.spec):
        wanted = entry.to_ours([state[name] for name in entry.theirs])
        np.testing.assert_array_equal(found.leaves[entry.name].read(), wanted)


def pictures(folder):
    """Files of odd sizes."""
    random = np.random.RandomState(0)
    paths = []
    for i, size in enumerate(((90, 60), (70, 131), (64, 64), (33, 47))):
        coarse = random.randint(0, 256, (size[1] // 8 + 1, size[0] // 8 + 1, 3))
        pixels = coarse.repeat(8, 0).repeat(8, 1)[: size[1], : size[0]].astype(np.uint8)
        paths.append(folder / f"{i}.png")
        Image.fromarray(pixels).save(paths[-1])
    return paths


@pytest.mark.parametrize("row", ["ViT-B-32", "RN50", "xlm-roberta-base-ViT-B-32"])
def test_pictures_and_captions_end_to_end(row, open_clip, parity, tmp_path):
    """`clipjax convert` of open_clip's folder, then Encoder, against open_clip on them."""
    changes = json.loads(json.dumps(TINY))
    if row == "RN50":
        image = {"name": "modified_resnet", "layers": [1, 1, 1, 1], "width": 8, "num_heads": 4}
        changes["image"] = {**image, "output_dim": 64}
    if row.startswith("xlm"):
        changes["text"] = {"depth": 12, "width": 768, "num_heads": 12, "mlp_dim": 3072}
    spec = merge(to_plain(MODELS[row]), changes)
    found, _ = seeded_weights(spec)
    if row.startswith("xlm"):
        golden = TESTS / "golden" / "tokenizers" / "xlm_roberta.json.gz"
        (tmp_path / "tokenizer.json").write_bytes(gzip.decompress(golden.read_bytes()))
        files = {"tokenizer.json": tmp_path / "tokenizer.json"}
        cleaning = ["fix_text", "collapse_whitespace"]
        own = {**spec["tokenizer"], "model": "tokenizer.json", "cleaning": cleaning}
        found = Weights({**spec, "tokenizer": own}, found.leaves, files)
    folder = tmp_path / "theirs"
    open_clip_format.write(folder, found)
    target = tmp_path / "ours"
    command = [sys.executable, "-m", "clipjax", "convert", "--from", folder, "--to", target]
    environment = {**os.environ, "PYTHONPATH": str(TESTS.parent)}
    subprocess.run([*command, "--format", "clipjax"], check=True, env=environment, timeout=600)
    with jax.default_matmul_precision("highest"):
        encoder = Model.from_checkpoint(target)
        ours = encoder.encode_image(pictures(tmp_path)), encoder.encode_text(CAPTIONS)
    theirs = reference(open_clip, parity, folder, pictures(tmp_path))
    # Pixels are the same bytes; float32 is summed in another order.
    for found, wanted in zip(ours, theirs, strict=True):
        assert found.shape == wanted.shape
        assert np.abs(found - wanted).max() <= 5e-6


@pytest.mark.parametrize(
    "row, file",
    [
        ("siglip-b-16-224", "c4.model"),
        ("siglip2-b-16-224", "gemma.model"),
        ("ViT-L-14-CLIPA", None),
        ("ViT-B-32", None),
    ],
)
def test_the_tokenizer_of_a_folder_is_open_clips(row, file, open_clip, tmp_path):
    """Files that we write, read by both."""
    spec, files = to_plain(MODELS[row]), {}
    if file is not None:
        golden = TESTS / "golden" / "tokenizers" / f"{file}.gz"
        (tmp_path / file).write_bytes(gzip.decompress(golden.read_bytes()))
        spec["tokenizer"]["model"], files = file, {file: tmp_path / file}
    folder = tmp_path / "out"
    folder.mkdir()
    tokenizer.write_files(folder, Weights(spec, {}, files))
    config = config_of_spec(spec)
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    text = config["model_cfg"]["text_cfg"]
    found, files = tokenizer.tokenizer_of_folder(MODELS[row]["tokenizer"], text, folder)
    if "model" in found:
        found["model"] = str(files[found["model"]])
    ours = make_tokenizer(found, context_length=spec["text"]["context_length"])(CAPTIONS)
    theirs = open_clip.get_tokenizer(f"local-dir:{folder}")(CAPTIONS)
    np.testing.assert_array_equal(ours, theirs.numpy())


def reference(open_clip, parity, folder, paths):
    import torch

    name = f"local-dir:{folder}"
    config = open_clip.get_model_config(name)
    hf = parity[1].hf_model.AutoConfig
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hf, "from_pretrained", lambda name: parity[1].xlm(name, None))
        model, _, preprocess = open_clip.create_model_and_transforms(name)
    assert config["embed_dim"] == 64
    tokenize = open_clip.get_tokenizer(name)
    images = torch.stack([preprocess(Image.open(path)) for path in paths])
    with torch.no_grad():
        image_embeds = model.eval().encode_image(images, normalize=True)
        text_embeds = model.encode_text(tokenize(CAPTIONS), normalize=True)
    return image_embeds.numpy(), text_embeds.numpy()
