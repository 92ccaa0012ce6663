"""What we write, loaded by transformers and diffusers themselves: needs the [interop] extra."""

import gzip
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from hugging_face_case import (
    CHINESE,
    PICTURES,
    edit,
    final_norm,
    inputs,
    make_directory,
    picture,
    read,
    run,
    variables,
)

from clipjax.array_types import Patches
from clipjax.config import merge, to_plain
from clipjax.data.images.naflex import make_preprocess
from clipjax.data.images.preprocess import Preprocess
from clipjax.interop import hugging_face
from clipjax.interop.hugging_face.config_json import read_config
from clipjax.interop.shapes import expected_shapes
from clipjax.interop.tensors import of_array
from clipjax.interop.weights import Weights
from clipjax.models import MODELS, build_model
from clipjax.tokenizers import make_tokenizer

pytestmark = [pytest.mark.interop, pytest.mark.filterwarnings("default")]

TEXTS = ["a photo of a Cat", "two dogs, on the sofa!", "x", "the 3 men's bicycles " * 30]
GEMMA = Path(__file__).parent.parent / "golden" / "tokenizers" / "gemma.model.gz"
EMBEDDING, LOGITS, HIDDEN = 2e-6, 1e-4, 1e-5


@pytest.fixture(scope="module")
def reference():
    import transformers_reference

    return transformers_reference


def random_weights(spec, files=()):
    """A model of ours with seeded noise in each leaf."""
    leaves = {name: of_array(noise(name, shape)) for name, shape in expected_shapes(spec).items()}
    return Weights(spec, leaves, dict(files), "a random model")


def noise(name, shape):
    random = np.random.RandomState(sum(map(ord, name)))
    value = random.standard_normal(shape).astype(np.float32)
    last = name.rsplit("/", 1)[-1]
    if last == "logit_scale":
        return np.float32(3.0)
    if last == "logit_bias":
        return np.float32(-5.0)
    if last in ("scale", "var"):
        return 1 + 0.2 * np.abs(value)
    if last.endswith("kernel"):
        width = {"out_kernel": shape[:-1], "patch_kernel": shape[:-1]}.get(last, shape[:1])
        return value * np.float32(np.prod(width) ** -0.5)
    return value * np.float32(0.1 if last.endswith("bias") else 0.3)


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """(directory that we wrote, our weights) of a CLIP whose towers differ in all they can."""
    folder = tmp_path_factory.mktemp("clip")
    make_directory(folder / "theirs", "clip")
    weights = random_weights(merge(read(folder / "theirs").spec, {"text": {"context_length": 77}}))
    hugging_face.write(folder / "ours", weights)
    return folder / "ours", weights


@pytest.fixture(scope="module")
def siglip(tmp_path_factory):
    folder = tmp_path_factory.mktemp("siglip")
    make_directory(folder / "theirs", "siglip")
    theirs = read(folder / "theirs")
    weights = random_weights(theirs.spec, theirs.tokenizer_files)
    hugging_face.write(folder / "ours", weights)
    return folder / "ours", weights


def tokens_and_images(reference, weights):
    torch = reference.torch
    images, tokens = inputs(weights.spec)
    theirs = torch.tensor(images.transpose(0, 3, 1, 2)), torch.tensor(tokens, dtype=torch.long)
    return images, tokens, *theirs


def unit(x):
    x = x.detach().numpy()
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def close(ours, theirs, bar):
    assert np.abs(np.asarray(ours) - np.asarray(theirs)).max() <= bar


def stacked(layers):
    return np.stack([layer.detach().numpy() for layer in layers])


def test_the_classes_of_clip(reference, clip):
    path, weights = clip
    images, tokens, pixels, ids = tokens_and_images(reference, weights)
    image_embeds, text_embeds, logits, hidden = run(weights, images, tokens)
    with reference.torch.no_grad():
        model, unexpected = reference.load("CLIPModel", path)
        out = model(input_ids=ids, pixel_values=pixels)
        close(image_embeds, out.image_embeds, EMBEDDING)
        close(text_embeds, out.text_embeds, EMBEDDING)
        close(logits, out.logits_per_image, LOGITS)
        assert not unexpected
        model, unexpected = reference.load("CLIPTextModel", path)
        out = model(ids, output_hidden_states=True)
        close(hidden, stacked(out.hidden_states[1:]), HIDDEN)
        close(final_norm(weights, hidden[-1]), out.last_hidden_state, HIDDEN)
        assert all(x.startswith("vision_model.") or "." not in x or "proj" in x for x in unexpected)
        model, _ = reference.load("CLIPTextModelWithProjection", path)
        close(text_embeds, unit(model(ids).text_embeds), EMBEDDING)
        model, _ = reference.load("CLIPVisionModelWithProjection", path)
        close(image_embeds, unit(model(pixels).image_embeds), EMBEDDING)
        model, _ = reference.load("CLIPVisionModel", path)
        ours = build_model(weights.spec).apply(
            variables(weights), images, keep_hidden=True, method="image_features"
        )
        out = model(pixels, output_hidden_states=True)
        close(ours.hidden, stacked(out.hidden_states[1:]), HIDDEN)
        close(ours.pooled, out.pooler_output, HIDDEN)


def test_the_classes_of_siglip(reference, siglip):
    path, weights = siglip
    images, tokens, pixels, ids = tokens_and_images(reference, weights)
    image_embeds, text_embeds, logits, hidden = run(weights, images, tokens)
    with reference.torch.no_grad():
        model, unexpected = reference.load("SiglipModel", path)
        out = model(input_ids=ids, pixel_values=pixels)
        close(image_embeds, out.image_embeds, EMBEDDING)
        close(text_embeds, out.text_embeds, EMBEDDING)
        close(logits, out.logits_per_image, LOGITS)
        assert not unexpected
        model, _ = reference.load("SiglipTextModel", path)
        out = model(ids, output_hidden_states=True)
        # Its last entry may be the normalised output, as in other classes of this version.
        close(hidden[:-1], stacked(out.hidden_states[1 : len(hidden)]), HIDDEN)
        close(text_embeds, unit(out.pooler_output), EMBEDDING)
        model, _ = reference.load("SiglipVisionModel", path)
        close(image_embeds, unit(model(pixels).pooler_output), EMBEDDING)


def test_align(reference, tmp_path):
    make_directory(tmp_path / "theirs", "align")
    weights = random_weights(read(tmp_path / "theirs").spec)
    hugging_face.write(tmp_path / "ours", weights)
    images, tokens, pixels, ids = tokens_and_images(reference, weights)
    image_embeds, text_embeds, logits, _ = run(weights, images, tokens)
    model, unexpected = reference.load("AlignModel", tmp_path / "ours")
    with reference.torch.no_grad():
        out = model(input_ids=ids, pixel_values=pixels, attention_mask=(ids != 0).long())
    assert not unexpected
    close(image_embeds, out.image_embeds, 5e-6)
    close(text_embeds, out.text_embeds, EMBEDDING)
    close(logits, out.logits_per_image, LOGITS)
    tokenizer = reference.transformers.AutoTokenizer.from_pretrained(tmp_path / "ours")
    ours = make_tokenizer(weights.spec["tokenizer"], context_length=16)(TEXTS)
    np.testing.assert_array_equal(padded(tokenizer, TEXTS, 16), ours)
    assert_pixels(reference, tmp_path / "ours", weights.spec)


def test_chinese_clip(reference, tmp_path):
    make_directory(tmp_path / "theirs", "chinese_clip")
    theirs = read(tmp_path / "theirs")
    weights = random_weights(theirs.spec, theirs.tokenizer_files)
    hugging_face.write(tmp_path / "ours", weights)
    images, tokens, pixels, ids = tokens_and_images(reference, weights)
    image_embeds, text_embeds, logits, _ = run(weights, images, tokens)
    model, unexpected = reference.load("ChineseCLIPModel", tmp_path / "ours")
    with reference.torch.no_grad():
        out = model(input_ids=ids, pixel_values=pixels, attention_mask=(ids != 0).long())
    assert not unexpected
    close(image_embeds, out.image_embeds, EMBEDDING)
    close(text_embeds, out.text_embeds, EMBEDDING)
    close(logits, out.logits_per_image, LOGITS)
    tokenizer = reference.transformers.AutoTokenizer.from_pretrained(tmp_path / "ours")
    spec = {**weights.spec["tokenizer"], "model": str(tmp_path / "ours" / "vocab.txt")}
    ours = make_tokenizer(spec, context_length=16)
    np.testing.assert_array_equal(padded(tokenizer, CHINESE, 16), ours(CHINESE))
    assert_pixels(reference, tmp_path / "ours", weights.spec)
    # As versions from 5 on save a tokenizer: the JSON file alone.
    model.save_pretrained(tmp_path / "again")
    tokenizer.save_pretrained(tmp_path / "again")
    copied = (tmp_path / "ours" / "preprocessor_config.json").read_bytes()
    (tmp_path / "again" / "preprocessor_config.json").write_bytes(copied)
    (tmp_path / "again" / "vocab.txt").unlink(missing_ok=True)
    edit(tmp_path / "again", "config.json", "clipjax", value=None)
    again = read(tmp_path / "again")
    assert again.spec["text"] == weights.spec["text"]
    # Some versions zero the row of padding, which nothing attends to.
    for name, x in weights.leaves.items():
        inside = slice(1, None) if name == "text_encoder/token_embedding" else ...
        np.testing.assert_array_equal(again.leaves[name].read()[inside], x.read()[inside])
    spec = {**again.spec["tokenizer"], "model": str(again.tokenizer_files["tokenizer.json"])}
    np.testing.assert_array_equal(make_tokenizer(spec, context_length=16)(CHINESE), ours(CHINESE))


@pytest.mark.parametrize(
    "image, text",
    [
        ("CLIPVisionConfig", "BertConfig"),
        ("ViTConfig", "RobertaConfig"),
        ("ViTConfig", "XLMRobertaConfig"),
    ],
)
def test_dual_encoders(reference, tmp_path, image, text):
    torch, transformers = reference.torch, reference.transformers
    make_directory(tmp_path / "files", "dual_encoder")
    sizes = {"num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    positions = {"max_position_embeddings": 20, "vocab_size": 290}
    config = transformers.VisionTextDualEncoderConfig.from_vision_text_configs(
        getattr(transformers, image)(hidden_size=32, image_size=32, patch_size=8, **sizes),
        getattr(transformers, text)(hidden_size=24, **sizes, **positions),
        projection_dim=20,
    )
    torch.manual_seed(0)
    theirs = transformers.VisionTextDualEncoderModel(config).eval()
    with torch.no_grad():  # as drawn, biases are zero and norms do nothing
        for parameter in theirs.parameters():
            parameter += 0.2 * torch.randn(parameter.shape)
    theirs.save_pretrained(tmp_path / "theirs")
    for name in ("preprocessor_config.json", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "theirs" / name).write_bytes((tmp_path / "files" / name).read_bytes())
    if text == "BertConfig":  # whose vocabularies pad with 0
        edit(tmp_path / "theirs", "tokenizer_config.json", "pad_token", value="<s>")
    weights = read(tmp_path / "theirs")
    assert weights.spec["image"]["pooling"] == ("cls" if image[0] == "C" else "pooler")
    images, tokens, pixels, ids = tokens_and_images(reference, weights)
    mask = (ids != weights.spec["text"]["pad_id"]).long()
    image_embeds, text_embeds, logits, _ = run(weights, images, tokens)
    hugging_face.write(tmp_path / "ours", weights)
    ours, unexpected = reference.load("VisionTextDualEncoderModel", tmp_path / "ours")
    assert not unexpected
    for model in (theirs, ours):
        with torch.no_grad():
            out = model(input_ids=ids, pixel_values=pixels, attention_mask=mask)
        close(image_embeds, out.image_embeds, EMBEDDING)
        close(text_embeds, out.text_embeds, EMBEDDING)
        close(logits, out.logits_per_image, LOGITS)
    again = read(tmp_path / "ours")
    assert again.spec == {**weights.spec, "tokenizer": again.spec["tokenizer"]}
    assert all(np.array_equal(x.read(), again.leaves[n].read()) for n, x in weights.leaves.items())
    tokenizer = reference.transformers.AutoTokenizer.from_pretrained(tmp_path / "ours")
    spec = {**weights.spec["tokenizer"], "model": str(tmp_path / "files" / "tokenizer.json")}
    found = make_tokenizer(spec, context_length=16)(TEXTS)
    np.testing.assert_array_equal(padded(tokenizer, TEXTS, 16), found)
    assert_pixels(reference, tmp_path / "ours", weights.spec)


def test_metaclip_2(reference, tmp_path):
    torch, transformers = reference.torch, reference.transformers
    make_directory(tmp_path / "files", "dual_encoder")
    sizes = {"num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    text = {"hidden_size": 24, "vocab_size": 290, "max_position_embeddings": 16, **sizes}
    image = {"hidden_size": 32, "image_size": 32, "patch_size": 8, **sizes}
    config = transformers.MetaClip2Config(
        text_config={**text, "eos_token_id": 2}, vision_config=image, projection_dim=20
    )
    torch.manual_seed(0)
    theirs = transformers.MetaClip2Model(config).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter += 0.2 * torch.randn(parameter.shape)
    theirs.save_pretrained(tmp_path / "theirs")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "theirs" / name).write_bytes((tmp_path / "files" / name).read_bytes())
    processor = transformers.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=32)
    processor.save_pretrained(tmp_path / "theirs")
    weights = read(tmp_path / "theirs")
    images, _, pixels, _ = tokens_and_images(reference, weights)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "theirs")
    spec = {**weights.spec["tokenizer"], "model": str(tmp_path / "files" / "tokenizer.json")}
    tokens = make_tokenizer(spec, context_length=16)(TEXTS)
    np.testing.assert_array_equal(padded(tokenizer, TEXTS, 16), tokens)
    image_embeds, text_embeds, logits, _ = run(weights, images, tokens)
    hugging_face.write(tmp_path / "ours", weights)
    ours, unexpected = reference.load("MetaClip2Model", tmp_path / "ours")
    assert not unexpected
    for model in (theirs, ours):
        with torch.no_grad():
            out = model(input_ids=torch.tensor(tokens, dtype=torch.long), pixel_values=pixels)
        close(image_embeds, out.image_embeds, EMBEDDING)
        close(text_embeds, out.text_embeds, EMBEDDING)
        close(logits, out.logits_per_image, LOGITS)
    assert np.abs(text_embeds[0] - text_embeds[2]).max() > 1e-2  # the control: texts differ


@pytest.mark.parametrize("kind", ["pytorch_model.bin", "model.safetensors.index.json"])
def test_what_transformers_saves_is_read(reference, clip, tmp_path, kind):
    path, weights = clip
    model, _ = reference.load("CLIPModel", path)
    model.save_pretrained(tmp_path / "b", max_shard_size="1MB")
    if kind == "pytorch_model.bin":  # which versions from 5 on read and do not write
        for file in (tmp_path / "b").glob("model*"):
            file.unlink()
        reference.torch.save(model.state_dict(), tmp_path / "b" / kind)
    assert (tmp_path / "b" / kind).is_file()
    again = read(tmp_path / "b")
    assert all(np.array_equal(x.read(), again.leaves[n].read()) for n, x in weights.leaves.items())
    # What transformers carries along unread is still there.
    assert again.spec == weights.spec


def test_older_configs_mean_what_they_mean_there(reference, tmp_path):
    make_directory(tmp_path / "a", "clip")
    config = json.loads((tmp_path / "a" / "config.json").read_text())
    config["text_config_dict"] = {"hidden_size": 24, "intermediate_size": 48}
    config["text_config_dict"] |= {"num_attention_heads": 3, "num_hidden_layers": 3}
    theirs = reference.transformers.CLIPConfig.from_dict(config).text_config
    edit(tmp_path / "a", "config.json", "text_config_dict", value=config["text_config_dict"])
    edit(tmp_path / "a", "config.json", "text_config", "max_position_embeddings", value=77)
    text = read_config(json.loads((tmp_path / "a" / "config.json").read_text()), "c")[1]["text"]
    assert text["activation"] == theirs.hidden_act == "quick_gelu"
    assert text["layer_norm_eps"] == theirs.layer_norm_eps == 1e-5
    assert text["context_length"] == theirs.max_position_embeddings == 77


def padded(tokenizer, texts, length):
    """Rows of a tokenizer of theirs."""
    found = tokenizer(texts, padding="max_length", truncation=True, max_length=length)
    return np.array(found.input_ids)


@pytest.mark.parametrize("name", ["CLIPTokenizer", "CLIPTokenizerFast", "AutoTokenizer"])
def test_the_tokenizers_of_clip(reference, clip, name):
    path, weights = clip
    tokenizer = getattr(reference.transformers, name).from_pretrained(path)
    assert tokenizer.model_max_length == 77
    ours = make_tokenizer(weights.spec["tokenizer"], context_length=77)(TEXTS)
    # It pads with the end token, we with 0: the same embedding.
    ends = (ours == 49407).argmax(axis=1)[:, None]
    ours = np.where(np.arange(77) > ends, 49407, ours)
    np.testing.assert_array_equal(padded(tokenizer, TEXTS, 77), ours)


def test_the_vocabulary_is_open_clips(clip):
    from open_clip.tokenizer import SimpleTokenizer

    vocabulary = json.loads((clip[0] / "vocab.json").read_text())
    theirs = SimpleTokenizer()
    assert list(vocabulary)[:-2] == list(theirs.encoder)[:-2]
    lines = (clip[0] / "merges.txt").read_text().splitlines()[1:]
    assert [tuple(line.split()) for line in lines] == sorted(
        theirs.bpe_ranks, key=theirs.bpe_ranks.get
    )


def test_the_tokenizer_of_siglip(reference, siglip):
    path, weights = siglip
    spec = {**weights.spec["tokenizer"], "model": str(path / "spiece.model")}
    ours = make_tokenizer(spec, context_length=16)(TEXTS)
    for name in ("SiglipTokenizer", "AutoTokenizer"):
        tokenizer = getattr(reference.transformers, name).from_pretrained(path)
        np.testing.assert_array_equal(padded(tokenizer, TEXTS, 16), ours)


def test_the_tokenizer_of_siglip_2(reference, siglip, tmp_path):
    (tmp_path / "gemma.model").write_bytes(gzip.decompress(GEMMA.read_bytes()))
    tokenizer = to_plain({**MODELS["siglip2-b-16-224"]["tokenizer"], "model": "gemma.model"})
    spec = merge(siglip[1].spec, {"text": {"vocab_size": 1200}})
    weights = random_weights(
        {**spec, "tokenizer": tokenizer}, {"gemma.model": tmp_path / "gemma.model"}
    )
    hugging_face.write(tmp_path / "ours", weights)
    ours = make_tokenizer({**tokenizer, "model": str(tmp_path / "gemma.model")}, context_length=16)(
        TEXTS
    )
    theirs = reference.transformers.AutoTokenizer.from_pretrained(tmp_path / "ours")
    np.testing.assert_array_equal(padded(theirs, TEXTS, 16), ours)
    assert read(tmp_path / "ours").spec["tokenizer"] == {**tokenizer, "model": "tokenizer.model"}
    # As the published directories are: the JSON file alone.
    (tmp_path / "ours" / "tokenizer.model").unlink()
    edit(tmp_path / "ours", "config.json", "clipjax", value=None)
    again = read(tmp_path / "ours")
    spec = {**again.spec["tokenizer"], "model": str(again.tokenizer_files["tokenizer.json"])}
    np.testing.assert_array_equal(make_tokenizer(spec, context_length=16)(TEXTS), ours)


def assert_pixels(reference, path, spec):
    processor = reference.transformers.AutoImageProcessor.from_pretrained(path, use_fast=False)
    images = [picture(*size) for size in PICTURES]
    theirs = processor(images, return_tensors="np")["pixel_values"].transpose(0, 2, 3, 1)
    pixels = np.stack([Preprocess.from_spec(spec)(image) for image in images])
    mean, std = (np.float32(spec["preprocess"][name]) for name in ("mean", "std"))
    close((pixels / np.float32(255) - mean) / std, theirs, 1e-6)


@pytest.mark.parametrize("resize", ["shortest", "squash"])
def test_the_image_processors(reference, clip, siglip, tmp_path, resize):
    assert_pixels(reference, siglip[0], siglip[1].spec)
    rules = {**clip[1].spec["preprocess"], "resize": resize, "interpolation": "bilinear"}
    spec = {**clip[1].spec, "preprocess": {**rules, "crop_fraction": 32 / 34}}
    hugging_face.write(tmp_path / "b", Weights(spec, clip[1].leaves))
    assert_pixels(reference, tmp_path / "b", spec)


def test_siglip_2_of_any_aspect(reference, siglip, tmp_path):
    tower = siglip[1].spec["image"]
    fields = ("width", "depth", "num_heads", "mlp_dim", "activation", "layer_norm_eps")
    row = MODELS["siglip2-b-16-naflex"]
    spec = {**siglip[1].spec, "preprocess": {**row["preprocess"], "max_patches": 20}}
    spec["image"] = {"name": "naflex_vit", "patch_size": 8, "position_side": 4}
    spec["image"] |= {name: tower[name] for name in fields}
    weights = random_weights(spec, siglip[1].tokenizer_files)
    hugging_face.write(tmp_path / "ours", weights)
    model, unexpected = reference.load("Siglip2Model", tmp_path / "ours")
    assert not unexpected
    images = [picture(*size) for size in PICTURES]
    processor = reference.transformers.AutoImageProcessor.from_pretrained(
        tmp_path / "ours", use_fast=False
    )
    batch = processor(images, return_tensors="pt")
    process = make_preprocess(spec)
    patches = [process(image) for image in images]
    pixels, grids = (np.stack([getattr(x, name) for x in patches]) for name in ("pixels", "grid"))
    np.testing.assert_array_equal(grids, batch["spatial_shapes"])
    inside = batch["pixel_attention_mask"].numpy().astype(bool)
    pixels = pixels.astype(np.float32) / 127.5 - 1
    close(pixels[inside], batch["pixel_values"][inside], 1e-6)
    tokens = inputs(spec)[1]
    with reference.torch.no_grad():
        out = model(input_ids=reference.torch.tensor(tokens, dtype=reference.torch.long), **batch)
    apply = jax.jit(build_model(spec).apply)
    ours = apply(variables(weights), Patches(pixels, grids), tokens)
    close(ours.image_embeds, out.image_embeds, EMBEDDING)
    close(ours.text_embeds, out.text_embeds, EMBEDDING)


def unet_and_vae(reference, width, **fields):
    """Tiny and random."""
    diffusers, torch = reference.diffusers, reference.torch
    torch.manual_seed(0)
    unet = diffusers.UNet2DConditionModel(
        sample_size=4,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=2,
        cross_attention_dim=width,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        **fields,
    )
    vae = diffusers.AutoencoderKL(
        block_out_channels=(8, 16),
        norm_num_groups=4,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        sample_size=8,
    )
    return unet.eval(), vae.eval()


def draw(reference, pipeline, **inputs):
    """One image of two steps, always of the same noise."""
    generator = reference.torch.Generator().manual_seed(0)
    pipeline.set_progress_bar_config(disable=True)
    out = pipeline(
        **inputs, num_inference_steps=2, height=8, width=8, output_type="pt", generator=generator
    )
    image = out.images.detach()
    assert image.shape == (1, 3, 8, 8) and reference.torch.isfinite(image).all()
    return image


def test_a_stable_diffusion_pipeline(reference, clip):
    path, weights = clip
    transformers = reference.transformers
    unet, vae = unet_and_vae(reference, weights.spec["text"]["width"])
    pipeline = reference.diffusers.StableDiffusionPipeline(
        text_encoder=transformers.CLIPTextModel.from_pretrained(path),
        tokenizer=transformers.CLIPTokenizer.from_pretrained(path),
        unet=unet,
        vae=vae,
        scheduler=reference.diffusers.DDIMScheduler(steps_offset=1, clip_sample=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    image = draw(reference, pipeline, prompt=TEXTS[0])
    assert not reference.torch.equal(image, draw(reference, pipeline, prompt=TEXTS[1]))
    tokens = padded(pipeline.tokenizer, TEXTS[:4], 77)
    hidden = run(weights, inputs(weights.spec)[0], tokens)[3]
    embeds, _ = pipeline.encode_prompt(TEXTS, "cpu", 1, False)
    close(final_norm(weights, hidden[-1]), embeds.detach(), HIDDEN)
    # Stable Diffusion 2's way, or "clip skip": the last layer but one, normalised.
    tower = pipeline.text_encoder
    layers = tower(reference.torch.tensor(tokens), output_hidden_states=True).hidden_states
    norm = getattr(tower, "text_model", tower).final_layer_norm
    close(hidden[-2], layers[-2].detach(), HIDDEN)
    close(final_norm(weights, hidden[-2]), norm(layers[-2]).detach(), HIDDEN)


def test_an_unclip_pipeline(reference, clip):
    path, weights = clip
    transformers, diffusers = reference.transformers, reference.diffusers
    size = weights.spec["embed_dim"]
    unet, vae = unet_and_vae(
        reference,
        weights.spec["text"]["width"],
        class_embed_type="projection",
        projection_class_embeddings_input_dim=2 * size,
    )
    pipeline = diffusers.StableUnCLIPImg2ImgPipeline(
        feature_extractor=transformers.CLIPImageProcessor.from_pretrained(path),
        image_encoder=transformers.CLIPVisionModelWithProjection.from_pretrained(path),
        image_normalizer=diffusers.pipelines.stable_diffusion.StableUnCLIPImageNormalizer(size),
        image_noising_scheduler=diffusers.DDPMScheduler(),
        tokenizer=transformers.CLIPTokenizer.from_pretrained(path),
        text_encoder=transformers.CLIPTextModel.from_pretrained(path),
        unet=unet,
        scheduler=diffusers.DDIMScheduler(steps_offset=1, clip_sample=False),
        vae=vae,
    )
    first, second = (picture(*size) for size in PICTURES[:2])
    image = draw(reference, pipeline, image=first, prompt=TEXTS[0])
    for other in ({"image": second, "prompt": TEXTS[0]}, {"image": first, "prompt": TEXTS[1]}):
        assert not reference.torch.equal(image, draw(reference, pipeline, **other))
    pixels = pipeline.feature_extractor([first, second], return_tensors="pt").pixel_values
    embeds = pipeline.image_encoder(pixels).image_embeds
    ours = build_model(weights.spec).apply(
        variables(weights), pixels.numpy().transpose(0, 2, 3, 1), method="encode_image"
    )
    close(ours, unit(embeds), EMBEDDING)


def test_a_llava(reference, clip):
    path, weights = clip
    transformers, torch = reference.transformers, reference.torch
    tower, _ = reference.load("CLIPVisionModel", path)
    text = transformers.LlamaConfig(
        vocab_size=50,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=64,
        pad_token_id=0,
        eos_token_id=None,
    )
    config = transformers.LlavaConfig(
        vision_config=tower.config, text_config=text, image_token_index=49, image_seq_length=16
    )
    torch.manual_seed(0)
    model = transformers.LlavaForConditionalGeneration(config).eval()
    model.model.vision_tower.load_state_dict(tower.state_dict())
    images, _, pixels, _ = tokens_and_images(reference, weights)
    ids = torch.tensor([[1, *[49] * 16, 7, 8]])
    with torch.no_grad():
        first, second = (model(ids, pixel_values=x[None]).logits for x in pixels[:2])
        answer = model.generate(ids, pixel_values=pixels[:1], max_new_tokens=3, do_sample=False)
        theirs = model.model.vision_tower(pixels, output_hidden_states=True).hidden_states[-2]
    assert torch.isfinite(first).all() and not torch.equal(first, second)
    assert answer.shape == (1, ids.shape[1] + 3)
    ours = build_model(weights.spec).apply(
        variables(weights), images, keep_hidden=True, method="image_features"
    )
    close(ours.hidden[-2], theirs, HIDDEN)
