import itertools
import json
import re
from pathlib import Path

import pytest

from clipjax.models import MODELS, build_model, count_model_parameters, resolve_spec
from clipjax.tokenizers import make_tokenizer

# name: (image, text, total) of the published weights.
PARAMETERS = {
    "RN50": (38_316_896, 63_690_240, 102_007_137),
    "RN101": (56_259_936, 63_428_096, 119_688_033),
    "RN50x4": (87_137_080, 91_163_520, 178_300_601),
    "RN50x16": (167_328_912, 123_650_304, 290_979_217),
    "RN50x64": (420_380_352, 202_877_952, 623_258_305),
    "ViT-B-32": (87_849_216, 63_428_096, 151_277_313),
    "ViT-B-16": (86_192_640, 63_428_096, 149_620_737),
    "ViT-L-14": (303_966_208, 123_650_304, 427_616_513),
    "ViT-L-14-336": (304_293_888, 123_650_304, 427_944_193),
    "ViT-H-14": (632_076_800, 354_032_640, 986_109_441),
    "ViT-g-14": (1_012_645_632, 354_032_640, 1_366_678_273),
    "ViT-bigG-14": (1_844_907_264, 694_659_840, 2_539_567_105),
    "siglip-b-16-224": (92_884_224, 110_271_744, 203_155_970),
    "siglip-b-16-256": (92_930_304, 110_271_744, 203_202_050),
    "siglip-l-16-256": (315_956_224, 336_194_560, 652_150_786),
    "siglip-so400m-14-224": (427_680_704, 449_679_600, 877_360_306),
    "siglip-so400m-14-384": (428_225_600, 449_734_896, 877_960_498),
    "siglip2-b-16-224": (92_884_224, 282_303_744, 375_187_970),
    "siglip2-l-16-256": (315_956_224, 565_570_560, 881_526_786),
    "siglip2-so400m-14-224": (427_680_704, 707_782_896, 1_135_463_602),
    "siglip2-so400m-16-256": (427_888_064, 707_782_896, 1_135_670_962),
    "siglip2-g-opt-16-256": (1_163_168_256, 708_225_648, 1_871_393_906),
    # As counted in transformers.
    "siglip2-b-16-naflex": (92_930_304, 282_303_744, 375_234_050),
    "siglip2-so400m-16-naflex": (427_888_064, 707_782_896, 1_135_670_962),
    # As counted in open_clip; CLIPA's there holds the fixed positions too.
    "ViT-S-16": (21_813_504, 62_257_536 - 21_813_504, 62_257_537),
    "ViT-B-16-plus-240": (117_213_824, 208_377_344 - 117_213_824, 208_377_345),
    "ViT-e-14": (3_807_716_864, 4_581_086_464 - 3_807_716_864, 4_581_086_465),
    "ViT-L-14-CLIPA": (303_964_160 - 263_168, 110_246_400, 414_210_561 - 263_168),
    "PE-Core-B-16": (93_673_984, 353_986_560, 447_660_545),
    "PE-Core-bigG-14-448": (1_882_033_920, 537_233_920, 2_419_267_841),
    "ViT-H-14-worldwide": (632_076_800, 1_226_706_944, 1_858_783_745),
    # As counted in transformers and open_clip, without BERT's pooler, which nothing reads.
    "align-base": (62_143_440, 109_383_808, 171_527_249),
    "chinese-clip-vit-base-patch16": (86_192_640, 102_070_272, 188_262_913),
    "chinese-clip-vit-huge-patch14": (632_076_800, 325_521_408, 957_598_209),
    "xlm-roberta-base-ViT-B-32": (87_849_216, 278_272_256, 366_121_473),
    "xlm-roberta-large-ViT-H-14": (632_076_800, 560_937_984, 1_193_014_785),
}
# Width of an attention head where it is not 64, by a part of the name.
HEAD_DIMS = {"ViT-H-14": 80, "ViT-g-14": 88, "ViT-bigG-14": 104, "ViT-e-14": 112}
HEAD_DIMS |= {"so400m": 72, "g-opt": 96, "-huge-": 80, "PE-Core-bigG": 96}


def _one_of_each_kind():
    """All rows; those whose towers differ from an earlier row's in their sizes alone are slow."""
    seen, rows = set(), []
    for name in PARAMETERS:
        towers = MODELS[name]["image"], MODELS[name]["text"]
        kind = json.dumps(
            [{k: v for k, v in t.items() if isinstance(v, str | bool)} for t in towers]
        )
        slow = kind in seen
        seen.add(kind)
        rows.append(pytest.param(name, marks=pytest.mark.slow) if slow else name)
    return rows


@pytest.mark.parametrize("name", _one_of_each_kind())
def test_parameters_to_the_digit(name):
    counts = count_model_parameters(MODELS[name])
    assert (counts["image"], counts["text"], counts["total"]) == PARAMETERS[name]


@pytest.mark.slow
def test_the_command_prints_every_row_with_its_parameters(command):
    table = json.loads(command("models", "--json").out)
    assert list(table) == list(MODELS)
    counts = {name: tuple(row["parameters"].values()) for name, row in table.items()}
    assert {name: counts[name] for name in PARAMETERS} == PARAMETERS
    page = (Path(__file__).parents[2] / "docs" / "models.md").read_text(encoding="utf-8")
    written = {}
    for line in page.splitlines():
        if line.startswith("| `") and len(cells := re.split(r" *\| *", line.strip("| "))) == 8:
            numbers = tuple(int(cell.replace(",", "")) for cell in cells[-3:])
            written |= dict.fromkeys(expand_braces(cells[0].strip("`")), numbers)
    for name, (image, text, total) in counts.items():
        # The page counts the larger patch of those that share a line.
        if "-patch8-" in name:
            more = 3 * (16**2 - 8**2) * MODELS[name]["image"]["width"]
            image, total = image + more, total + more
        # Rows that differ in activation or preprocessing alone share a line.
        row = written.get(name) or written[re.sub("-(quickgelu|dfn|laion2b)", "", name)]
        assert (image, text, total) == row, name


def expand_braces(pattern):
    parts = [part.strip("{}").split(",") for part in re.split(r"(\{[^}]*\})", pattern)]
    return ["".join(choice) for choice in itertools.product(*parts)]


@pytest.mark.parametrize("name", MODELS)
def test_every_row_is_plain_data_and_builds(name):
    spec = MODELS[name]
    assert spec["name"] == name and spec["source"]
    plain = json.loads(json.dumps(spec))
    assert resolve_spec(plain) == plain
    assert build_model(plain).embed_dim == spec["embed_dim"]
    image = spec["image"]
    if "num_heads" in image and image["name"] != "modified_resnet":
        sizes = [size for part, size in HEAD_DIMS.items() if part in name]
        assert image["width"] // image["num_heads"] == (sizes[0] if sizes else 64)


def test_openai_and_openclip_rows_differ_in_the_activation_alone():
    quick = [name for name in MODELS if name.endswith("-quickgelu")]
    assert MODELS["ViT-H-14-quickgelu-dfn"]["preprocess"]["resize"] == "squash"
    assert MODELS["ViT-H-14-quickgelu"]["preprocess"]["resize"] == "shortest"
    assert "ViT-B-32-quickgelu" in quick
    for name in quick:
        base = MODELS[name.removesuffix("-quickgelu")]
        for tower in ("image", "text"):
            assert MODELS[name][tower].get("activation", "quick_gelu") == "quick_gelu"
            assert {**base[tower], "activation": ""} == {**MODELS[name][tower], "activation": ""}
    # No ResNet was published with the exact GELU.
    assert MODELS["RN50"]["text"]["activation"] == "quick_gelu"
    assert MODELS["ViT-B-32"]["image"]["activation"] == "gelu"
    assert MODELS["siglip-b-16-224"]["text"]["activation"] == "gelu_tanh"


def test_scale_policies():
    assert MODELS["ViT-B-32"]["logit_scale"]["max"] == 100
    assert MODELS["siglip-so400m-14-384"]["logit_scale"] == {"init": 10.0, "max": None}


def test_siglip_rows_say_that_their_vocabulary_has_to_be_given():
    with pytest.raises(ValueError, match="SentencePiece model is not shipped"):
        make_tokenizer(MODELS["siglip-b-16-224"]["tokenizer"], context_length=64)


def test_a_row_with_changes():
    spec = resolve_spec({"name": "ViT-B-32", "image_size": 256, "image": {"dropout": 0.1}})
    assert spec["image_size"] == 256 and spec["image"]["dropout"] == 0.1
    assert spec["image"]["width"] == 768 and MODELS["ViT-B-32"]["image_size"] == 224


@pytest.mark.parametrize(
    "model, message",
    [
        (
            {"name": "ViT-B-31"},
            "'ViT-B-31' is no row of the zoo, and .*lacks embed_dim.*nearest are ViT-B-32, ",
        ),
        (
            {"name": "ViT-B-32", "embed": 3},
            "model.embed is unknown; accepted here are .*mean 'embed_dim'",
        ),
    ],
)
def test_a_model_that_is_not_known(model, message):
    with pytest.raises(ValueError, match=message):
        resolve_spec(model)


def test_the_page_has_every_row():
    page = (Path(__file__).parents[2] / "docs" / "models.md").read_text(encoding="utf-8")
    for name in MODELS:
        if not name.startswith("openvision") and not name.endswith("-quickgelu"):
            assert f"| `{name}` |" in page, name
    for name, counts in PARAMETERS.items():
        row = next(line for line in page.splitlines() if line.startswith(f"| `{name}` |"))
        assert row.endswith("".join(f" {count:,} |" for count in counts)), name
