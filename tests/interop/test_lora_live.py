"""LoRA as peft itself writes and merges it: needs the [interop] extra."""

import numpy as np
import pytest
from hugging_face_case import make_directory
from small_weights import assert_same, leaves_of

from clipjax.interop import Hints
from clipjax.interop.converting import convert_weights

pytestmark = [pytest.mark.interop, pytest.mark.filterwarnings("default")]

TARGETS = ["q_proj", "v_proj", "fc1", "visual_projection", "patch_embedding", "token_embedding"]
OPTIONS = {
    "plain": {"r": 4, "lora_alpha": 10},
    "patterns": {"r": 4, "lora_alpha": 6, "rank_pattern": {"v_proj": 2}},
    "root": {"r": 4, "lora_alpha": 10, "use_rslora": True, "alpha_pattern": {"0.mlp.fc1": 3}},
    "whole": {
        "r": 4,
        "lora_alpha": 10,
        "modules_to_save": ["text_projection"],
        "bias": "lora_only",
    },
}


@pytest.mark.parametrize("case", OPTIONS)
def test_what_peft_writes_is_what_peft_merges(tmp_path, case):
    import torch
    import transformers_reference
    from peft import LoraConfig, get_peft_model

    make_directory(tmp_path / "base", "clip")
    model, _ = transformers_reference.load("CLIPModel", tmp_path / "base")
    model = get_peft_model(model, LoraConfig(target_modules=TARGETS, **OPTIONS[case]))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    model.save_pretrained(tmp_path / "adapter")
    state = {name: x.clone() for name, x in model.state_dict().items()}
    torch.save(state, tmp_path / "adapter" / "whole.bin")
    merged = model.merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")

    convert_weights(tmp_path / "merged", tmp_path / "a", "clipjax")
    hints = Hints(lora=tmp_path / "adapter")
    done = convert_weights(tmp_path / "base", tmp_path / "b", "clipjax", hints=hints)
    assert "LoRA of" in done.notes[-1]
    # The state dict of the whole, beside the config of the base and of the adapter.
    for name in ("config.json", "preprocessor_config.json"):
        (tmp_path / "adapter" / name).write_bytes((tmp_path / "base" / name).read_bytes())
    (tmp_path / "adapter" / "adapter_model.safetensors").unlink()
    (tmp_path / "adapter" / "whole.bin").rename(tmp_path / "adapter" / "pytorch_model.bin")
    convert_weights(tmp_path / "adapter", tmp_path / "c", "clipjax")

    wanted, found = leaves_of(tmp_path / "a"), leaves_of(tmp_path / "b")
    assert_same(leaves_of(tmp_path / "c"), found)
    convert_weights(tmp_path / "base", tmp_path / "d", "clipjax")
    start = leaves_of(tmp_path / "d")
    changed = 0
    for name, x in wanted.items():
        np.testing.assert_allclose(found[name], x, rtol=1e-6, atol=1e-6, err_msg=name)
        changed += np.abs(x - start[name]).max() > 1e-3
    assert changed >= 8  # the control: the base is another model
