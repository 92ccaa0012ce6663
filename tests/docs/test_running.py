"""Every command and every Python block of the documents runs, in a folder with small stand-ins."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys

import pytest
from blocks import DOCUMENTS, ROOT, Block, blocks_of
from stage import HERE, Stage

pytestmark = pytest.mark.docs

# (document, words of the block): why it is not run.
NOT_RUN = {
    ("README.md", "pip install libtpu"): "it says what not to do",
    ("docs/data.md", "oxford_iiit_pet').download"): "downloads a dataset from the internet",
    ("docs/evaluation.md", "--suite datacomp"): "needs folders of the 38 sets; "
    "tests/integration/test_suite.py runs suites on small ones",
    ("docs/use.md", "clipjax serve"): "serves until it is stopped; tests/serving starts it",
    ("docs/use.md", "127.0.0.1:8000"): "asks that server; tests/serving asks one the same",
    ("docs/library.md", "import open_clip"): "that of open_clip, to compare; it is parsed",
    ("docs/library.md", "from open_clip import"): "that of open_clip, to compare; it is parsed",
    ("docs/interop.md", 'create_model("ViT-B-32-quickgelu"'): "OpenCLIP builds the full size; "
    "tests/interop/test_open_clip_live.py compares it",
}
# (document, words of the block): the package that it needs. Where it is missing the block is left
# out: `-m tpu` (tests/cli/test_plan.py) and `-m interop` (tests/interop) run the same with it, and
# test_blocks.py parses the flags in any case.
NEEDS = {
    ("docs/plan.md", "--topology v5e"): "libtpu",
    ("docs/recipes.md", "--topology v5p"): "libtpu",
    ("README.md", "--topology v5e"): "libtpu",
    ("docs/launching.md", "--topology v4"): "libtpu",
    ("docs/launching.md", "--topology v5e"): "libtpu",
    ("docs/plan.md", "--topology h100"): "jax_plugins",
    ("README.md", "--topology h100"): "jax_plugins",
    ("docs/interop.md", "local-dir:mine_open_clip"): "open_clip",
    ("docs/interop.md", "from transformers import"): "transformers",
    ("docs/hand_off.md", "# text_encoder.py"): "diffusers",
    ("docs/hand_off.md", "# vision_tower.py"): "transformers",
    ("docs/hand_off.md", "# same_tokens.py"): "diffusers",  # it reads what those two wrote
    ("docs/hand_off.md", "# to_onnx.py"): "onnxscript",
    ("docs/interop.md", "parity.py --family"): "torch",
    ("docs/losses.md", "loss.py --part"): "torch",
}
CONFIG = (
    "from clipjax.config import default_config, validate\n"
    "config = default_config()\n"
    "config.data.source = 'synthetic:100'\n"
    "config.total_steps = 1_000_000",
    "validate(config)",
)
# (document, words of the block): what the text around a Python block takes for granted, and what
# is to follow from the block.
AROUND = {
    ("docs/configs.md", "config.stages = ("): CONFIG,
    ("docs/configs.md", "config.optimizer.averages = ("): CONFIG,
    ("docs/configs.md", "config.trackers = ("): (CONFIG[0], ""),  # one is of a package of yours
    ("docs/models.md", 'config.model.name = "ViT-B-16"'): CONFIG,
    ("docs/losses.md", "loss_fn = make_loss"): (
        "import jax, jax.numpy as jnp\n"
        "from clipjax.losses import make_loss\n"
        "from clipjax.partitioning import make_mesh\n"
        "mesh = make_mesh({'data': -1, 'fsdp': 1, 'tensor': 1})\n"
        "image_embeds = text_embeds = jnp.eye(8)\n"
        "logit_scale = jnp.float32(2.0)",
        "assert loss.shape == () and metrics['positive_cosine'] == 1",
    ),
    ("docs/interop.md", "create_model_and_transforms"): ("import open_clip", ""),
    ("docs/interop.md", "model.image_tokens"): (
        "import clipjax\nmodel = clipjax.load('runs/mine')\nimages, texts = ['a.jpg'], ['a cat']",
        "",
    ),
}


def lookup(table, block):
    found = [
        value
        for (document, words), value in table.items()
        if document == block.document and words in block.text
    ]
    assert len(found) <= 1, f"{block.where}: {found}"
    return found[0] if found else None


@pytest.mark.parametrize("table", [NOT_RUN, NEEDS, AROUND])
def test_the_tables_speak_of_blocks_that_are_there(table):
    blocks = [block for path in DOCUMENTS for block in blocks_of(path)]
    for document, words in table:
        assert any(b.document == document and words in b.text for b in blocks), (document, words)


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("docs_cache")


@pytest.fixture(scope="session")
def quickstart(cache, tmp_path_factory):
    """The run that the documents start from, as `bash launch/quickstart.sh` makes it."""
    stage = Stage(tmp_path_factory.mktemp("quickstart"), cache)
    stage.run(Block(DOCUMENTS[0], 2, "bash", "bash launch/quickstart.sh\n"))
    return stage.root / "runs" / "quickstart"


@pytest.fixture(scope="session")
def weights(tmp_path_factory):
    """Checkpoints and weight files that the documents name; made once, and copied."""
    folder = tmp_path_factory.mktemp("weights")
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, HERE / "weights.py", folder], check=True, env=env)
    return folder


@pytest.fixture
def stage(tmp_path, cache, quickstart, weights):
    stage = Stage(tmp_path, cache)
    shutil.copytree(weights, tmp_path, dirs_exist_ok=True)
    shutil.copytree(quickstart, tmp_path / "runs" / "quickstart")
    return stage


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: p.stem)
def test_every_block_runs(path, stage):
    if path.stem == "README":  # it makes the run itself
        shutil.rmtree(stage.root / "runs" / "quickstart")
    left_out = []
    for block in blocks_of(path):
        if block.language not in ("bash", "python") or lookup(NOT_RUN, block):
            continue
        package = lookup(NEEDS, block)
        if package and importlib.util.find_spec(package) is None:
            left_out.append(f"{block.where} needs {package}")
            continue
        stage.run(block, *(lookup(AROUND, block) or ()))
    if left_out:
        pytest.skip(f"all but these ran: {', '.join(left_out)}")


@pytest.mark.parametrize(
    ("language", "text", "line"),
    [
        ("bash", "echo well\nclipjax data check folder:nowhere\necho well\n", 42),
        ("bash", "pip install '.[nope]'\n", 41),
        ("python", "import clipjax\nclipjax.nope\n", 42),
    ],
)
def test_a_broken_block_is_named(language, text, line, tmp_path, cache):
    with pytest.raises(AssertionError, match=r"docs/page.md:41") as error:
        Stage(tmp_path, cache).run(Block(DOCUMENTS[0].parent / "docs/page.md", 41, language, text))
    assert f"line {line}" in str(error.value)


def test_the_pod_gets_the_command(stage):
    """The stand-in for gcloud runs what it is given, so the launcher's last line is real."""
    flags = "--config configs/smoke.py --workdir $PWD/runs/pod"
    text = f"NAME=a ZONE=b bash launch/tpu_pod.sh run {flags}\n"
    stage.run(Block(DOCUMENTS[0], 2, "bash", text))
    assert json.loads((stage.root / "runs" / "pod" / "results.json").read_text())
    assert " scp " in (stage.root / "gcloud.log").read_text()
