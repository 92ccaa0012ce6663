"""Writes the small torch files of tests/interop/test_torch_zip.py; needs torch, any of 2.x.

    python tests/golden/interop/make_torch_files.py

state_dict.pt      a state dict, of contiguous tensors, views and every dtype
training.pt        {"epoch", "name", "state_dict", "optimizer"} of a model wrapped as by DDP
torchscript.pt     torch.jit.save of a tiny model like OpenAI's archives: fp16, with a mask that is
                   no buffer and sizes that are
expected.npz       the arrays that must be read, by `<file>/<name>`
"""

from collections import OrderedDict
from pathlib import Path

import numpy as np
import torch
from torch import nn

HERE = Path(__file__).parent


def state_dict():
    base = torch.arange(24, dtype=torch.float32).reshape(4, 6) / 7
    return OrderedDict(
        [
            ("f32", base),
            ("transposed", base.T),
            ("column", base[:, 2]),
            ("rows", base[1:3]),
            ("f16", base.half()),
            ("bf16", base.bfloat16()),
            ("f64", base.double()),
            ("i64", torch.arange(5)),
            ("u8", torch.arange(5, dtype=torch.uint8)),
            ("bool", torch.tensor([True, False, True])),
            ("scalar", torch.tensor(2.5)),
            ("one", torch.full((1,), 4.6052)),
            ("empty", torch.zeros(0, 3)),
            ("parameter", nn.Parameter(torch.linspace(-1, 1, 8).reshape(2, 4))),
        ]
    )


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.attn = nn.MultiheadAttention(width, 2)
        self.ln_1 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            OrderedDict([("c_fc", nn.Linear(width, width)), ("c_proj", nn.Linear(width, width))])
        )
        self.attn_mask = torch.full((3, 3), float("-inf")).triu(1)  # a tensor, but no state

    def forward(self, x):
        return x + self.mlp.c_proj(self.mlp.c_fc(self.ln_1(x))) + self.attn_mask[0, 0]


class Clip(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 2, 2, bias=False)
        self.resblocks = nn.ModuleList([Block(8) for _ in range(2)])
        self.bn1 = nn.BatchNorm2d(8)
        self.token_embedding = nn.Embedding(11, 8)
        self.logit_scale = nn.Parameter(torch.tensor(2.6593))
        self.sizes = [1, 2, 3]
        for name, value in (("input_resolution", 4), ("context_length", 3), ("vocab_size", 11)):
            self.register_buffer(name, torch.tensor(value))

    def forward(self, images, tokens):
        x = self.bn1(self.conv1(images)).flatten(2).permute(0, 2, 1)
        for block in self.resblocks:
            x = block(x)
        return (x.mean((1, 2)) * self.token_embedding(tokens).mean()) * self.logit_scale.exp()


def main():
    torch.manual_seed(0)
    plain = state_dict()
    torch.save(plain, HERE / "state_dict.pt")
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.randn(5, 3)).square().sum().backward()
    optimizer.step()
    wrapped = OrderedDict((f"module.{k}", v) for k, v in model.state_dict().items())
    torch.save(
        {
            "epoch": 3,
            "name": "run",
            "state_dict": wrapped,
            "optimizer": optimizer.state_dict(),
        },
        HERE / "training.pt",
    )
    script = torch.jit.script(Clip().eval().half())
    torch.jit.save(script, HERE / "torchscript.pt")
    expected = {f"state_dict/{k}": v for k, v in plain.items() if k != "bf16"}
    expected["state_dict/bf16"] = plain["bf16"].float()
    expected |= {f"training/{k}": v for k, v in model.state_dict().items()}
    expected |= {f"torchscript/{k}": v for k, v in script.state_dict().items()}
    np.savez_compressed(
        HERE / "expected.npz", **{k: v.detach().numpy() for k, v in expected.items()}
    )


if __name__ == "__main__":
    main()
