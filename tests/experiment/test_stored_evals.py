"""What a run's evaluations leave in its checkpoints."""

from clipjax.encoding.prompts import prompts_of_run
from clipjax.experiment import build_experiment, resolve
from configs.smoke import get_config


def test_the_text_of_a_file_of_templates_is_stored(tmp_path):
    file = tmp_path / "mine.txt"
    file.write_text("# mine\none {} of mine\n{c}\n")
    config = get_config()
    config.evals.zero_shot.templates = str(file)
    config.evals.other = {"name": "zero_shot", "source": "synthetic:64", "classes": "present"}
    experiment = build_experiment(resolve(config), tmp_path / "run")
    stored = experiment.metadata["config"]
    assert str(file) not in str(stored["evals"])
    prompts = prompts_of_run(stored, "runs/x")
    assert prompts.templates == ("one {} of mine", "{}")
    evals = {e.key: e for e in experiment.evals}
    assert evals["zero_shot"].eval.templates == prompts.templates
    assert evals["zero_shot"].about["templates"]["sha256"] == prompts.about()["sha256"]
    assert evals["zero_shot"].name.prefix == "zero_shot/synthetic_128"
    assert evals["other"].name.prefix == "zero_shot/synthetic_64"
    experiment.loader.close()
