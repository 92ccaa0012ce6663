"""Writes open_clip_CASE.npz: open_clip's outputs for models of published widths, of less depth.

    python tests/golden/interop/make_open_clip_published.py

needs the [interop] extra. The models are those of benchmarks/parity_open_clip.py.
"""

import json
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent.parent.parent.parent / "benchmarks"))
import numpy as np
import parity_open_clip

HERE = Path(__file__).parent
CASES = ("RN50", "ViT-B-32", "ViT-B-16-SigLIP")


def main():
    for name in CASES:
        found = parity_open_clip.run(name, depth=2)
        np.savez_compressed(
            HERE / f"open_clip_{name}.npz",
            spec=json.dumps(found.spec),
            image_embeds=found.image_embeds,
            text_embeds=found.text_embeds,
            logits=found.logits,
            text_hidden=found.text_hidden[:, :, ::7, ::16],
        )


if __name__ == "__main__":
    main()
