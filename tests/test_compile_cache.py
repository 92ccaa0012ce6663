"""The cache of compiled programs: the user's own folder, no other's; what it saves is said."""

import subprocess
import sys
from pathlib import Path

import jax
import pytest

from clipjax import compile_cache


@pytest.fixture
def use(monkeypatch):
    """`compile_cache.use` without the folder of the tests, which is there again afterwards."""
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", None)
    monkeypatch.delenv(compile_cache.VARIABLE, raising=False)
    yield compile_cache.use
    jax.config.update("jax_compilation_cache_dir", before)


def test_the_default_is_made_for_this_user_alone(use, tmp_path):
    folder = use(tmp_path / "compiled")
    assert folder.parent == tmp_path / "compiled" and folder.stat().st_mode & 0o777 == 0o700
    assert jax.config.jax_compilation_cache_dir == str(folder)


@pytest.mark.parametrize("said", ["off", "OFF", "0"])
def test_it_is_switched_off(use, tmp_path, monkeypatch, said):
    monkeypatch.setenv(compile_cache.VARIABLE, said)
    assert use(tmp_path / "compiled") is None and not (tmp_path / "compiled").exists()
    assert jax.config.jax_compilation_cache_dir is None


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o1777])
def test_a_folder_that_others_can_write_to_is_refused(use, tmp_path, monkeypatch, mode):
    folder = tmp_path / "compiled"
    folder.mkdir()
    folder.chmod(mode)
    monkeypatch.setenv(compile_cache.VARIABLE, str(folder))
    with pytest.raises(ValueError, match=r"others can write .* chmod 700"):
        use(tmp_path / "default")
    jax.config.update("jax_compilation_cache_dir", str(folder))  # JAX's own variable
    monkeypatch.delenv(compile_cache.VARIABLE)
    with pytest.raises(ValueError, match="others can write"):
        use(tmp_path / "default")


def test_a_folder_that_others_can_replace_is_refused(use, tmp_path, monkeypatch):
    open_to_all = tmp_path / "open"
    open_to_all.mkdir()
    open_to_all.chmod(0o777)
    monkeypatch.setenv(compile_cache.VARIABLE, str(open_to_all / "mine"))
    with pytest.raises(ValueError, match="open: others can write"):
        use(tmp_path / "default")
    open_to_all.chmod(0o1777)  # as /tmp is: what is in it stays its owner's
    assert use(tmp_path / "default") == open_to_all / "mine"


def test_code_goes_into_no_workdir_and_no_bucket(use, tmp_path, monkeypatch):
    monkeypatch.setenv(compile_cache.VARIABLE, str(tmp_path / "run" / "compiled"))
    with pytest.raises(ValueError, match="is in the workdir"):
        use(tmp_path / "default", workdir=tmp_path / "run")
    monkeypatch.setenv(compile_cache.VARIABLE, "gs://bucket/compiled")
    with pytest.raises(ValueError, match="a bucket is not this user's alone"):
        use(tmp_path / "default")
    assert not (tmp_path / "run").exists()


def test_a_home_that_takes_no_file_is_no_error(use, tmp_path, caplog):
    (tmp_path / "home").write_text("a file")
    with caplog.at_level("INFO"):
        assert use(tmp_path / "home" / "compiled") is None
    assert "compiled programs are not kept" in caplog.text


SCRIPT = """
import logging, sys, pathlib
import jax, jax.numpy as jnp
from clipjax import compile_cache
folder = compile_cache.use(pathlib.Path(sys.argv[1]))
told = []
jax.monitoring.register_event_duration_secs_listener(lambda event, s, **_: told.append(event))
EVENT = "/jax/compilation_cache/compile_time_saved_sec"
def f(x):
    for _ in range(40):
        x = jnp.sin(x @ x.T).at[0].add(1.0)
    return x
jax.jit(f).lower(jnp.ones((8, 8))).compile()
first = EVENT in told
jax.clear_caches()
jax.jit(f).lower(jnp.ones((8, 8))).compile()
print(len(list(folder.iterdir())) > 0, not first, EVENT in told)
"""


def test_what_it_saves_is_counted(tmp_path, monkeypatch):
    """By JAX itself: its event has that name, and comes when a program is taken from the folder."""
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, tmp_path / "compiled"],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
    )
    assert done.stdout.split() == ["True"] * 3, done.stderr


def test_seconds_are_in_the_log(use, tmp_path, caplog):
    use(tmp_path / "compiled")
    with caplog.at_level("INFO"):
        jax.monitoring.record_event_duration_secs(
            "/jax/compilation_cache/compile_time_saved_sec", 12.5
        )
    assert "12.5 s saved" in caplog.text
