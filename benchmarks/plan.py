"""The shipped configs, planned for the pods they are meant for: what fits, at what price.

    python benchmarks/plan.py                  needs the extra [tpu]; no TPU; minutes a row
    python benchmarks/plan.py --cases b16 l14
    python benchmarks/plan.py --cases scale16 scale4096      compile time against the chips
    python benchmarks/plan.py --cases gpu                    needs [cuda] or [cuda12]; no GPU
    python benchmarks/plan.py --cases recipes                those of docs/recipes.md; some hours

Each row is one `clipjax plan` in a process of its own. Compile-time facts and bounds from published
peaks; nothing runs on a chip, and no speed is claimed.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

if __name__ == "__main__" and not __package__:  # a file: the checkout in place of its folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks.common import setting_lines

GIB = 2**30
PLAIN = ("--config.attention=xla", "--config.remat=dots", "--config.scan_layers=true")
# name: (config and overrides, topology)
CASES = {
    "b16": (("configs/openai.py",), "v5e:16x16"),
    "l14": (("configs/openai.py:recipe=ViT-L-14",), "v5e:16x16"),
    "h14": (("configs/laion.py:recipe=2b-ViT-H-14,batch_size=32768",), "v5e:16x16"),
    "bigg14": (("configs/laion.py:recipe=2b-ViT-bigG-14,batch_size=65536",), "v5p:8x8x8"),
    "scale16": (("configs/openai.py:batch_size=1024",), "v5p:2x2x4"),
    "scale4096": (("configs/openai.py:batch_size=262144", "--config.mesh.fsdp=16"), "v5p:16x16x16"),
    # One GPU, docs/performance.md's table; `plain` is the default of before: no kernel, a scan.
    "b16_h100": (("configs/openai.py:batch_size=256",), "h100:1"),
    "b16_h100_names": (("configs/openai.py:batch_size=256", "--config.remat=names"), "h100:1"),
    "b16_h100_plain": (("configs/openai.py:batch_size=256", *PLAIN), "h100:1"),
    "l14_h100": (("configs/openai.py:recipe=ViT-L-14,batch_size=128",), "h100:1"),
    "l14_h100_plain": (("configs/openai.py:recipe=ViT-L-14,batch_size=128", *PLAIN), "h100:1"),
    "b32_h100": (("configs/openai.py:recipe=ViT-B-32,batch_size=1024",), "h100:1"),
    "b32_h100_plain": (("configs/openai.py:recipe=ViT-B-32,batch_size=1024", *PLAIN), "h100:1"),
    # One host: as many examples a GPU as 256 of them would have, so that rows can be compared.
    "b16_h100x8": (("configs/openai.py:batch_size=1024",), "h100:8"),
    "b16_h100x256": (("configs/openai.py",), "h100:32x8"),
    "l14_h100x8": (("configs/openai.py:recipe=ViT-L-14,batch_size=1024",), "h100:8"),
    "l14_h100x256": (("configs/openai.py:recipe=ViT-L-14",), "h100:32x8"),
    "h14_h100x8": (("configs/laion.py:recipe=2b-ViT-H-14,batch_size=1024,fsdp=8",), "h100:8"),
    "h14_h100x256": (("configs/laion.py:recipe=2b-ViT-H-14,batch_size=32768,fsdp=8",), "h100:32x8"),
    "siglip_b16_h100x8": (("configs/siglip.py:batch_size=1024",), "h100:8"),
}
# The published recipes with their own batches, on the pod that docs/recipes.md names; several
# recipes of one table may have the same step.
RECIPES = {
    "openai_rn50": (("configs/openai.py:recipe=RN50",), "v5e:16x16"),
    "openai_rn101": (("configs/openai.py:recipe=RN101",), "v5e:16x16"),
    "openai_rn50x4": (("configs/openai.py:recipe=RN50x4",), "v5e:16x16"),
    "openai_rn50x16": (("configs/openai.py:recipe=RN50x16",), "v5p:8x8x4"),
    "openai_rn50x64": (("configs/openai.py:recipe=RN50x64",), "v5p:8x8x4"),
    "openai_b32": (("configs/openai.py:recipe=ViT-B-32",), "v5e:16x16"),
    "openai_b16_muon": (("configs/openai.py", "--config.optimizer.name=muon"), "v5e:16x16"),
    "openai_l14_336": (("configs/openai.py:recipe=ViT-L-14-336",), "v5p:8x8x4"),
    "laion400m_b16": (("configs/laion.py:recipe=400m-ViT-B-16",), "v5e:16x16"),
    "laion400m_b16_plus": (("configs/laion.py:recipe=400m-ViT-B-16-plus-240",), "v5e:16x16"),
    "laion_b32": (("configs/laion.py:recipe=2b-ViT-B-32",), "v5e:16x16"),
    "laion_b16": (("configs/laion.py:recipe=2b-ViT-B-16",), "v5e:16x16"),
    "laion_l14": (("configs/laion.py:recipe=2b-ViT-L-14",), "v5p:8x8x4"),
    "laion_h14": (("configs/laion.py:recipe=2b-ViT-H-14",), "v5p:8x8x4"),
    "laion_g14": (("configs/laion.py:recipe=2b-ViT-g-14",), "v5p:8x8x4"),
    "laion_bigg14": (("configs/laion.py:recipe=2b-ViT-bigG-14",), "v5p:8x8x8"),
    "datacomp_small": (("configs/datacomp.py",), "v5e:4x4"),
    "datacomp_large": (("configs/datacomp.py:recipe=large",), "v5e:8x8"),
    "datacomp_xlarge": (("configs/datacomp.py:recipe=xlarge",), "v5p:8x8x4"),
    "ladder_s32": (("configs/laion_ladder.py:recipe=ViT-S-32-128M",), "v5e:2x4"),
    "ladder_s32_1280m": (("configs/laion_ladder.py:recipe=ViT-S-32-1280M",), "v5e:4x4"),
    "ladder_b32_1280m": (("configs/laion_ladder.py:recipe=ViT-B-32-1280M",), "v5e:4x4"),
    "ladder_l14_128m": (("configs/laion_ladder.py:recipe=ViT-L-14-128M",), "v5e:8x8"),
    "ladder_h14_128m": (("configs/laion_ladder.py:recipe=ViT-H-14-128M",), "v5e:8x8"),
    "ladder_l14": (("configs/laion_ladder.py:recipe=ViT-L-14-1280M",), "v5e:8x8"),
    "ladder_h14": (("configs/laion_ladder.py:recipe=ViT-H-14-1280M",), "v5p:4x4x4"),
    "metaclip_h14": (("configs/metaclip.py:recipe=2.5b-ViT-H-14",), "v5e:16x16"),
    "metaclip_bigg14": (("configs/metaclip.py:recipe=2.5b-ViT-bigG-14",), "v5p:8x8x8"),
    "metaclip_1.2": (("configs/metaclip.py:recipe=1.2-ViT-H-14",), "v5p:8x8x8"),
    "metaclip_2": (("configs/metaclip.py:recipe=2-ViT-H-14",), "v5p:8x8x8"),
    "flip_b16": (("configs/flip.py",), "v5e:16x16"),
    "flip_l16": (("configs/flip.py:recipe=2b-ViT-L-16",), "v5p:8x8x4"),
    "flip_h14": (("configs/flip.py:recipe=2b-ViT-H-14",), "v5p:8x8x4"),
    "clipa_h14": (("configs/clipa.py",), "v5e:16x16"),
    "clipa_l14": (("configs/clipa.py:recipe=v2-L-14",), "v5e:16x16"),
    "clipa_bigg14": (("configs/clipa.py:recipe=v2-bigG-14",), "v5p:8x8x8"),
    "clipa_b16": (("configs/clipa.py:recipe=B-16-i50-t16",), "v5e:8x8"),
    "clipa_l16_i17": (("configs/clipa.py:recipe=L-16-i17-t16",), "v5e:8x8"),
    "clipa_l16_i37": (("configs/clipa.py:recipe=L-16-i37-t8",), "v5e:8x8"),
    "openvision_tiny": (("configs/openvision.py:recipe=tiny",), "v5e:8x8"),
    "openvision_small": (("configs/openvision.py:recipe=small",), "v5e:8x8"),
    "openvision_b16": (("configs/openvision.py:recipe=base",), "v5e:16x16"),
    "openvision_l14": (("configs/openvision.py",), "v5e:16x16"),
    "openvision_so400m": (("configs/openvision.py:recipe=so400m",), "v5e:16x16"),
    "openvision_h14": (("configs/openvision.py:recipe=huge",), "v5e:16x16"),
    "siglip_b16": (("configs/siglip.py",), "v5e:16x16"),
    "siglip_b16_256": (("configs/siglip.py:recipe=b-16-256",), "v5e:16x16"),
    "siglip_l16": (("configs/siglip.py:recipe=l-16-256",), "v5e:16x16"),
    "siglip_so400m_224": (("configs/siglip.py:recipe=so400m-14-224",), "v5p:8x8x4"),
    "siglip_so400m": (("configs/siglip.py:recipe=so400m-14-384",), "v5p:8x8x8"),
    "siglip2_b32": (("configs/siglip2.py:recipe=b-32-256",), "v5e:16x16"),
    "siglip2_b16": (("configs/siglip2.py",), "v5e:16x16"),
    "siglip2_l16": (("configs/siglip2.py:recipe=l-16-256",), "v5e:16x16"),
    "siglip2_so400m": (("configs/siglip2.py:recipe=so400m-16-256",), "v5p:8x8x4"),
    "siglip2_gopt": (("configs/siglip2.py:recipe=g-opt-16-256",), "v5p:8x8x8"),
    "cc3m_rn50": (("configs/conceptual_captions.py",), "v5e:2x4"),
    "cc12m_rn50": (("configs/conceptual_captions.py:recipe=cc12m-RN50",), "v5e:4x4"),
    "cc12m_b32": (("configs/conceptual_captions.py:recipe=cc12m-ViT-B-32",), "v5e:4x4"),
    "lit_coco": (("configs/lit_coco.py",), "v5e:2x2"),
}
GROUPS = {
    "gpu": tuple(case for case in CASES if "h100" in case),
    "recipes": ("b16", "l14", *RECIPES),
}
CASES |= RECIPES
BARS = ("b16", "l14", "h14", "bigg14")
COMPILERS = ("libtpu", "jax-cuda12-plugin", "jax-cuda13-plugin")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", nargs="+", default=list(BARS), choices=[*CASES, *GROUPS])
    parser.add_argument("--json", type=Path, help="folder to keep the plans in")
    options = parser.parse_args()
    print("\n".join(setting_lines("jax", *COMPILERS)))
    print("- compile-time; no TPU and no GPU")
    print(
        "- FLOPs: matrix products of the compiled step, loop trips multiplied in, over the model's"
    )
    print("- bytes: collectives that a device receives in a step, over the formula (docs/plan.md)")
    print("- bounds follow from published peaks and are no forecast; CPU s is the whole process\n")
    print(
        "| case | batch | topology | mesh | remat | fits | HBM GiB | FLOPs / model "
        "| HBM traffic GB | step bytes | loss bytes | step >= ms, by | MFU <= | wall s | CPU s |"
    )
    print(f"|{'---|' * 15}")
    cases = [case for name in options.cases for case in GROUPS.get(name, (name,))]
    for case in cases:
        print(row(case, *run(case, options.json)), flush=True)


def run(case: str, folder: Path | None) -> tuple[dict, float, float]:
    """One plan: its JSON, the wall time and the CPU time of the process."""
    (config, *overrides), topology = CASES[case]
    with tempfile.TemporaryDirectory() as scratch:
        path = (folder or Path(scratch)) / f"{case}.json"
        command = [sys.executable, "-m", "clipjax", "plan", "--config", config, *overrides]
        command += ["--topology", topology, "--json", str(path)]
        start, used = time.perf_counter(), cpu_seconds()
        done = subprocess.run(command, capture_output=True, text=True)
        wall, cpu = time.perf_counter() - start, cpu_seconds() - used
        if folder is not None:
            path.with_suffix(".txt").write_text(done.stdout, encoding="utf-8")
        if not path.exists():
            raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}: {done.stderr}")
        return json.loads(path.read_text(encoding="utf-8")), wall, cpu


def cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def row(case: str, plan: dict, wall: float, cpu: float) -> str:
    mesh = " x ".join(str(size) for size in plan["mesh"].values())
    hbm = f"{plan['hbm']['needed'] / GIB:.2f} of {plan['hbm']['capacity'] / GIB:.2f}"
    cells = [case, f"{plan['batch_size']:,}", plan["topology"]["name"], mesh]
    cells += [plan["setting"]["remat"], "yes" if plan["fits"] else "NO", hbm]
    if plan["bounds"]:
        cells.append(f"{plan['flops']['compiled_over_model']:.3f}")
        cells.append(f"{plan['hbm_traffic']['hbm'] / 1e9:,.0f}")
        for part in ("step", "loss"):
            formula = plan["collective_formulas"][part]
            total = sum(c["bytes"] for c in plan["collectives"] if c["part"] == part)
            share = f", {total / formula:.2f}x" if formula else ""
            cells.append(f"{total / 1e6:.0f} MB{share}")
        bounds = plan["bounds"]
        cells.append(f"{bounds['step_s'] * 1e3:.0f}, {bounds['limited_by']}")
        cells.append(f"{bounds['mfu']:.0%}")
    else:
        cells += [""] * 6
    return f"| {' | '.join([*cells, f'{wall:.0f}', f'{cpu:.0f}'])} |"


if __name__ == "__main__":
    main()
