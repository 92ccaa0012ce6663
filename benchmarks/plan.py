"""The shipped configs, planned for the pods they are meant for: what fits, at what price.

    python benchmarks/plan.py                  needs the extra [tpu]; no TPU; minutes a row
    python benchmarks/plan.py --cases b16 l14
    python benchmarks/plan.py --cases scale16 scale4096      compile time against the chips
    python benchmarks/plan.py --cases gpu                    needs [cuda] or [cuda12]; no GPU

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
# name: (config and overrides, topology)
CASES = {
    "b16": (("configs/clip_vit_b16.py",), "v5e:16x16"),
    "l14": (("configs/clip_vit_l14.py",), "v5e:16x16"),
    "h14": (("configs/clip_vit_h14.py",), "v5e:16x16"),
    "bigg14": (("configs/clip_vit_bigg14.py",), "v5p:8x8x8"),
    "siglip_b16": (("configs/siglip_vit_b16.py",), "v5e:16x16"),
    "siglip_so400m": (("configs/siglip_so400m14.py", "--config.mesh.fsdp=4"), "v5p:8x8x8"),
    "scale16": (("configs/clip_vit_b16.py:batch_size=1024",), "v5p:2x2x4"),
    "scale4096": (
        ("configs/clip_vit_b16.py:batch_size=262144", "--config.mesh.fsdp=16"),
        "v5p:16x16x16",
    ),
    # One host: as many examples a GPU as 256 of them would have, so that rows can be compared.
    "b16_h100x8": (("configs/clip_vit_b16.py:batch_size=1024",), "h100:8"),
    "b16_h100x256": (("configs/clip_vit_b16.py",), "h100:32x8"),
    "l14_h100x8": (("configs/clip_vit_l14.py:batch_size=1024",), "h100:8"),
    "l14_h100x256": (("configs/clip_vit_l14.py",), "h100:32x8"),
    "h14_h100x8": (("configs/clip_vit_h14.py:batch_size=1024", "--config.mesh.fsdp=8"), "h100:8"),
    "h14_h100x256": (("configs/clip_vit_h14.py", "--config.mesh.fsdp=8"), "h100:32x8"),
    "siglip_b16_h100x8": (("configs/siglip_vit_b16.py:batch_size=1024",), "h100:8"),
}
BARS = ("b16", "l14", "h14", "bigg14")
GROUPS = {"gpu": tuple(case for case in CASES if "h100" in case)}
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
