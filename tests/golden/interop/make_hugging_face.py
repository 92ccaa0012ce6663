"""Writes the golden arrays of tests/interop/test_hugging_face.py by running transformers.

    python tests/golden/interop/make_hugging_face.py [CASE...]

needs the [interop] extra. A case is a tiny model of transformers with the weights of seeded.py, in
evaluation: the JSON files that it is saved with, its tensors' shapes, and what it computes.
"""

import io
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

sys.path += [
    str(Path(__file__).parents[2] / folder) for folder in ("golden/models", "tokenizers", "interop")
]
import torchvision_operators  # noqa: F401  # isort: skip  before what imports torchvision

import safetensors.torch
import seeded
import sentencepiece
import tokenizers
import transformers
from hugging_face_case import (
    BATCH,
    CHINESE,
    IMAGE_SIZE,
    LENGTH,
    PICTURES,
    TEXTS,
    padded_with,
    picture,
    their_weight,
)
from messy_captions import captions
from open_clip.tokenizer import SimpleTokenizer
from PIL import Image

HERE = Path(__file__).parent

CLIP_VOCAB, BERT_VOCAB, SIGLIP_VOCAB = 49408, 30522, 300
TEXT = {"hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 3}
TEXT |= {"num_attention_heads": 3}
IMAGE = {"hidden_size": 32, "intermediate_size": 80, "num_hidden_layers": 2}
IMAGE |= {"num_attention_heads": 2, "image_size": IMAGE_SIZE, "patch_size": 8}


def processor_of(name):
    """The class that resizes with Pillow, which versions from 5 on call otherwise."""
    return getattr(transformers, f"{name}Pil", None) or getattr(transformers, name)


def fill(model):
    """Puts the seeded weights in, by the names of the file; returns the model and the shapes."""
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        file = Path(folder) / "model.safetensors"
        tensors = safetensors.torch.load_file(file)
        for name, tensor in tensors.items():
            if tensor.is_floating_point():
                tensor.copy_(torch.tensor(their_weight(name, tensor.shape)))
        safetensors.torch.save_file(tensors, file, {"format": "pt"})
        shapes = {name: list(tensor.shape) for name, tensor in tensors.items()}
        return type(model).from_pretrained(folder).eval(), shapes


def saved(*parts):
    """The JSON files that these are saved with, as one JSON text."""
    with tempfile.TemporaryDirectory() as folder:
        for part in parts:
            part.save_pretrained(folder)
        files = {p.name: json.loads(p.read_text()) for p in sorted(Path(folder).glob("*.json"))}
    return json.dumps({name: files[name] for name in files if not name.startswith("tokenizer.")})


def run(model, processor, vocab_size, config_parts, pad_id=0, **inputs):
    model, shapes = fill(model)
    images = torch.tensor(seeded.images(BATCH, IMAGE_SIZE).transpose(0, 3, 1, 2))
    tokens = padded_with(pad_id, seeded.tokens(BATCH, LENGTH, vocab_size))
    tokens = torch.tensor(tokens, dtype=torch.long)
    inputs = {name: function(tokens) for name, function in inputs.items()}
    layers = getattr(model.text_model.encoder, "layers", None) or model.text_model.encoder.layer
    hidden = []
    for layer in layers:
        layer.register_forward_hook(
            lambda _, __, out: hidden.append(out[0] if isinstance(out, tuple) else out)
        )
    with torch.no_grad():
        out = model(input_ids=tokens, pixel_values=images, output_hidden_states=True, **inputs)
        listed = out.text_model_output.hidden_states  # SiglipModel lists none
        assert listed is None or torch.equal(listed[-2], hidden[-2])
        found = {
            "image_embeds": out.image_embeds,
            "text_embeds": out.text_embeds,
            "logits": out.logits_per_image,
            "text_hidden": torch.stack(hidden),
        }
        if hasattr(model.text_model, "final_layer_norm"):
            # What Stable Diffusion 2 takes; the first takes it without the norm.
            found["penultimate"] = model.text_model.final_layer_norm(hidden[-2])
    pixels = [
        processor(picture(*size), return_tensors="np")["pixel_values"][0] for size in PICTURES
    ]
    return {
        "files": saved(model.config, processor, *config_parts),
        "shapes": json.dumps(shapes),
        "pixels": pixels,
        **{name: x.numpy() for name, x in found.items()},
    }


def clip():
    """Another activation and epsilon in each tower, so that one cannot stand for the other."""
    config = transformers.CLIPConfig(
        text_config={
            **TEXT,
            "max_position_embeddings": LENGTH,
            "hidden_act": "gelu",
            "layer_norm_eps": 1e-3,
        },
        vision_config={**IMAGE, "hidden_act": "quick_gelu"},
        projection_dim=20,
    )
    processor = processor_of("CLIPImageProcessor")(
        size={"shortest_edge": IMAGE_SIZE}, crop_size=IMAGE_SIZE
    )
    return run(transformers.CLIPModel(config).eval(), processor, CLIP_VOCAB, ())


def siglip():
    model, proto = sentencepiece_model()
    config = transformers.SiglipConfig(
        text_config={
            **TEXT,
            "vocab_size": SIGLIP_VOCAB,
            "max_position_embeddings": LENGTH,
            "projection_size": IMAGE["hidden_size"],
        },
        vision_config=IMAGE,
    )
    processor = processor_of("SiglipImageProcessor")(size={"height": 32, "width": 32})
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "spiece.model"
        path.write_bytes(proto)
        tokenizer = transformers.SiglipTokenizer(str(path), model_max_length=LENGTH)
        ids = tokenizer(TEXTS, padding="max_length", truncation=True, max_length=LENGTH).input_ids
        found = run(transformers.SiglipModel(config).eval(), processor, SIGLIP_VOCAB, (tokenizer,))
    assert model.get_piece_size() == SIGLIP_VOCAB
    return {
        **found,
        "spiece.model": np.frombuffer(proto, np.uint8),
        "token_ids": np.array(ids, np.int32),
    }


def sentencepiece_model():
    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([text.lower() for text in captions(2000) if text.isascii()]),
        model_writer=out,
        vocab_size=SIGLIP_VOCAB,
        model_type="unigram",
        hard_vocab_limit=True,
        normalization_rule_name="identity",
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    return sentencepiece.SentencePieceProcessor(model_proto=out.getvalue()), out.getvalue()


def align():
    config = transformers.AlignConfig(
        text_config={**TEXT, "max_position_embeddings": 20, "vocab_size": BERT_VOCAB},
        vision_config={"width_coefficient": 0.25, "depth_coefficient": 0.3},
        projection_dim=80,
    )
    processor = processor_of("EfficientNetImageProcessor")(
        size={"height": 37, "width": 37},
        crop_size={"height": IMAGE_SIZE, "width": IMAGE_SIZE},
        do_center_crop=True,
        rescale_factor=1 / 127.5,
        rescale_offset=True,
        do_normalize=False,
        include_top=False,
        resample=Image.Resampling.BILINEAR,
    )
    return run(
        transformers.AlignModel(config).eval(),
        processor,
        BERT_VOCAB,
        (),
        attention_mask=lambda tokens: (tokens != 0).long(),
    )


def chinese_clip():
    """As published: images squashed, the first token of BERT projected."""
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz0123"]
    pieces += [f"##{x}" for x in "abcdeghinot"]
    pieces += sorted({x for text in CHINESE[:-1] for x in text if x > "\u3000"})
    config = transformers.ChineseCLIPConfig(
        text_config={**TEXT, "max_position_embeddings": 20, "vocab_size": len(pieces)},
        vision_config=IMAGE,
        projection_dim=20,
    )
    size = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "vocab.txt"
        file.write_text("\n".join(pieces) + "\n", encoding="utf-8")
        tokenizer = transformers.BertTokenizer(str(file), model_max_length=LENGTH)
        padded = {"padding": "max_length", "truncation": True, "max_length": LENGTH}
        ids = tokenizer(CHINESE, **padded).input_ids
    found = run(
        transformers.ChineseCLIPModel(config).eval(),
        processor_of("ChineseCLIPImageProcessor")(size=size, do_center_crop=False),
        len(pieces),
        (tokenizer,),
        attention_mask=lambda tokens: (tokens != 0).long(),
    )
    vocabulary = np.frombuffer("\n".join(pieces).encode(), np.uint8)
    return {**found, "vocab.txt": vocabulary, "token_ids": np.array(ids, np.int32)}


def dual_encoder():
    """A ViT and a RoBERTa, with a byte-level vocabulary whose padding is 1."""
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token="<unk>"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=290,
        special_tokens=["<s>", "<pad>", "</s>", "<unk>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(TEXTS, trainer)
    backend.post_processor = tokenizers.processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, model_max_length=LENGTH, **names
    )
    size = backend.get_vocab_size()
    config = transformers.VisionTextDualEncoderConfig.from_vision_text_configs(
        transformers.ViTConfig(**IMAGE, layer_norm_eps=1e-3),
        transformers.RobertaConfig(
            **TEXT, vocab_size=size, max_position_embeddings=20, type_vocab_size=1
        ),
        projection_dim=20,
    )
    found = run(
        transformers.VisionTextDualEncoderModel(config).eval(),
        processor_of("ViTImageProcessor")(size={"height": IMAGE_SIZE, "width": IMAGE_SIZE}),
        size,
        (tokenizer,),
        pad_id=1,
        attention_mask=lambda tokens: (tokens != 1).long(),
    )
    ids = tokenizer(TEXTS, padding="max_length", truncation=True, max_length=LENGTH).input_ids
    vocabulary = np.frombuffer(backend.to_str().encode(), np.uint8)
    return {**found, "tokenizer.json": vocabulary, "token_ids": np.array(ids, np.int32)}


def clip_tokenizer():
    """Ids of CLIPTokenizer, whose files are made of open_clip's vocabulary."""
    simple = SimpleTokenizer()
    vocabulary = {
        {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}.get(k, k): v
        for k, v in simple.encoder.items()
    }
    merges = sorted(simple.bpe_ranks, key=simple.bpe_ranks.get)
    # It leaves HTML entities as they are, where OpenAI's own tokenizer resolves them.
    texts = [text for text in captions(500) if "&" not in text]
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / name for name in ("vocab.json", "merges.txt")]
        files[0].write_text(json.dumps(vocabulary), encoding="utf-8")
        lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
        files[1].write_text("\n".join(lines), encoding="utf-8")
        tokenizer = transformers.CLIPTokenizer(*map(str, files), model_max_length=77)
        assert tokenizer.fix_text is not None, "needs ftfy, as OpenAI's tokenizer does"
        ids = tokenizer(texts, truncation=True, max_length=77).input_ids
    return {
        "texts": json.dumps(texts),
        "token_ids": np.array([i for row in ids for i in row], np.uint16),
        "lengths": np.array(list(map(len, ids)), np.uint8),
    }


def main():
    cases = {
        "clip": clip,
        "siglip": siglip,
        "align": align,
        "chinese_clip": chinese_clip,
        "dual_encoder": dual_encoder,
        "clip_tokenizer": clip_tokenizer,
    }
    for name in sys.argv[1:] or cases:
        np.savez_compressed(HERE / f"hugging_face_{name}.npz", **cases[name]())


if __name__ == "__main__":
    main()
