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
    "metaclip:recipe=2-ViT-H-14": None,
    "openai": None,
    "openai:recipe=ViT-L-14-336": [0, 0, 0, 1],
    "openvision": [0, 0, 0, 0, 1, 1, 2, 2],
    "siglip": None,
    "siglip2": None,
}
TOKENIZERS = {
    "metaclip:recipe=2-ViT-H-14": "xlm_roberta.json",  # of a vocabulary with XLM-V's rules
    "siglip": "c4.model",
    "siglip2": "gemma.model",
}


@pytest.mark.slow
@pytest.mark.parametrize("config", STAGES)
def test_a_recipe_trains(config, tmp_path, command):
    name, _, row = config.partition(":")
    arguments = [row, "smoke"] if row else ["smoke"]
    flags = [f"--config=configs/{name}.py:{','.join(arguments)}", "--config.log_every=1"]
    if config in TOKENIZERS:
        model = tmp_path / TOKENIZERS[config]
        packed = GOLDEN / f"tokenizers/{TOKENIZERS[config]}.gz"
        model.write_bytes(gzip.decompress(packed.read_bytes()))
        flags.append(f"--config.model.tokenizer.model={model}")
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
