"""The published recipes, small, by the command."""

import gzip
import json

import pytest
from config_files import CONFIGS
from golden import GOLDEN

# Config and row -> the stage of each step.
STAGES = {
    "clipa": [0, 0, 0, 0, 1, 1, 2, 2],
    "clipa:recipe=B-16-i50-t16": [0, 0, 0, 0, 1, 1],
    "conceptual_captions": None,
    "datacomp": None,
    "flip": [0, 0, 0, 1, 1],
    "laion": None,
    "laion:recipe=2b-ViT-bigG-14": [0, 0, 0, 1],
    "laion_ladder": None,
    "lit_coco": None,
    "metaclip": None,
    "metaclip:recipe=1.2-ViT-H-14": None,
    "openai": None,
    "openai:recipe=ViT-L-14-336": [0, 0, 0, 1],
    "openvision": [0, 0, 0, 0, 1, 1, 2, 2],
    "siglip": None,
    "siglip2": None,
}
TOKENIZERS = {"siglip": "c4", "siglip2": "gemma"}


@pytest.mark.slow
@pytest.mark.parametrize("config", STAGES)
def test_a_recipe_trains(config, tmp_path, command):
    name, _, row = config.partition(":")
    arguments = [row, "smoke"] if row else ["smoke"]
    if name in TOKENIZERS:
        model = tmp_path / "spiece.model"
        model.write_bytes(
            gzip.decompress((GOLDEN / f"tokenizers/{TOKENIZERS[name]}.model.gz").read_bytes())
        )
        arguments.append(f"tokenizer={model}")
    flags = [f"--config=configs/{name}.py:{','.join(arguments)}", "--config.log_every=1"]
    code, _, errors = command("train", *flags, f"--workdir={tmp_path}", "--config.report=false")
    assert code == 0, errors
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert all(row["skipped"] == 0 and row["loss"] > 0 for row in rows)
    stages = STAGES[config]
    if stages is None:
        assert len(rows) == 4
    else:
        assert [row["stage"] for row in rows] == stages
        assert rows[stages.index(1) - 1]["learning_rate"] > 0


def test_every_published_recipe_is_here():
    others = {"fashion_mnist", "finetune", "multilingual", "quickstart", "smoke"}
    assert {path.stem for path in CONFIGS.glob("*.py")} - others == {
        config.partition(":")[0] for config in STAGES
    }
