"""Worker processes: the same batches, whatever happens to who makes them."""

import gc
import importlib.util
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from counting import HANGS_S, wait_until
from worker_sources import Numbers, Talkative, Unreadable, numbers_in, tokens_of, tokens_of_three

from clipjax.data import Loader, TooManyBadExamples, make_source, make_transforms
from clipjax.data.images.preprocess import Preprocess
from clipjax.data.loading.rows import Finishing
from clipjax.data.loading.workers_processes import WorkerError

SPECS = (
    {"name": "random_resized_crop", "scale": (0.5, 1.0)},
    {"name": "color_jitter"},
    {"name": "drop_word"},
)


def make(source, batch_size, *, transforms=(), image_size=2, **options):
    options = {"seed": 0, "num_workers": 2, "workers": "processes", "timeout_s": 60.0, **options}
    preprocess = Preprocess(image_size)
    return Loader(
        source, transforms, tokens_of, batch_size=batch_size, preprocess=preprocess, **options
    )


def staged(**options):
    """12 pixels and three tokens up to step 2, then 16."""
    small = Finishing(
        make_transforms(SPECS, image_size=12), tokens_of_three, Preprocess(12, "shortest")
    )
    return make(
        make_source("synthetic:100"),
        24,
        transforms=make_transforms(SPECS, image_size=16),
        image_size=16,
        stages=[(2, small)],
        **options,
    )


def assert_equal(left, right):
    assert left.keys() == right.keys()
    for name in left:
        assert left[name].dtype == right[name].dtype
        np.testing.assert_array_equal(left[name], right[name])


def is_alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until_ready(loader):
    wait_until(loader.workers.are_ready)
    return loader.workers.pids()


def test_the_batches_are_those_of_threads_and_of_none():
    plain = [staged(num_workers=0).batch(step) for step in range(5)]
    with staged(workers="threads") as threads, staged(prefetch=3) as processes:
        kept = []
        for loader in (threads, processes):
            for step, batch in loader.iterate():
                assert_equal(batch, plain[step])
                kept.append(batch)
                if step == 4:
                    break
        # Seeking, and back to another size.
        assert_equal(processes.batch(1), plain[1])
        assert processes.counts() == {}
        for step, batch in enumerate(kept):  # no memory was used twice
            assert_equal(batch, plain[step % 5])
        with staged(seed=1, num_workers=0) as other:  # negative control
            assert (other.batch(0)["image"] != plain[0]["image"]).any()


def test_bad_examples_are_the_same():
    source = Numbers(100, bad=range(0, 100, 9))
    with (
        make(source, 50, num_workers=0, max_bad_fraction=1.0) as plain,
        make(source, 50, max_bad_fraction=1.0) as processes,
    ):
        for step in range(2):
            assert_equal(processes.batch(step), plain.batch(step))
        assert processes.counts() == plain.counts() and plain.counts()["planted"] >= 12
        assert processes.bad_examples() == plain.bad_examples()


def test_errors_come_as_they_are_and_name_where():
    with (
        make(Numbers(20, error=[5]), 20, num_workers=1) as loader,
        pytest.raises(ZeroDivisionError, match="a bug") as caught,
    ):
        loader.batch(0)
    assert "worker_sources.py" in caught.value.__notes__[0]
    with (
        make(Numbers(9, bad=range(9)), 8, num_workers=1) as loader,
        pytest.raises(TooManyBadExamples, match="Is this the right data"),
    ):
        loader.batch(0)


def test_what_cannot_be_sent_is_an_error():
    with pytest.raises(ValueError, match=r"'fork': allowed are threads, processes"):
        make(Numbers(10), 5, workers="fork")
    source = Numbers(10)
    source.tie = lambda: None
    with pytest.raises(ValueError, match=r"cannot be pickled.*Use 'threads'"):
        make(source, 5)
    with (
        make(Unreadable(10), 5, num_workers=1) as loader,
        pytest.raises(WorkerError, match="cannot start: the storage is not mounted"),
    ):
        loader.batch(0)


def test_an_example_that_kills_is_named():
    with (
        make(Numbers(64, deadly=[7]), 64) as loader,
        pytest.raises(WorkerError, match=r"step 0, example 7 of the examples .*SIGSEGV"),
    ):
        loader.batch(0)
    assert loader.counts() == {"worker_restarts": 2}
    # The other way round: what is whole comes in spite of it.
    with make(Numbers(64, deadly=[7]), 16) as loader:
        good = [step for step in range(4) if 7 not in loader.workers.maker.indices(step * 16, 16)]
        assert len(good) == 3
        for step in good:
            assert len(numbers_in(loader.batch(step))) == 16


def test_an_example_that_hangs_is_named():
    # Long enough for what comes before it on a busy machine.
    with make(Numbers(8, hanging=[3]), 8, num_workers=1, timeout_s=1.5) as loader:
        wait_until_ready(loader)
        with pytest.raises(WorkerError, match=r"example 3 of .*gave no sign for 1.5 s"):
            loader.batch(0)


def disturb(number, loss, timeout_s):
    """Kills or stops workers at random times; each loss has to be noticed, or this never ends.

    A killed one is noticed by its end: with a `timeout_s` that no test waits for, by nothing else.
    """
    rng = np.random.Generator(np.random.Philox(key=number))
    source = Numbers(600, delay_s=0.002)
    plain = make(Numbers(600), 48, num_workers=0)
    with make(source, 48, timeout_s=timeout_s) as loader:
        batches = loader.iterate()
        for _ in range(number):
            step, batch = next(batches)
            assert_equal(batch, plain.batch(step))
            pids = wait_until_ready(loader)
            victim = pids[int(rng.integers(len(pids)))]
            time.sleep(float(rng.uniform(0, 0.03)))
            os.kill(victim, loss)
            for _ in range(3):  # so that the victim is given work, wherever it was
                step, batch = next(batches)
                assert_equal(batch, plain.batch(step))
            wait_until(lambda: victim not in loader.workers.pids())  # noqa: B023  called at once
            assert not is_alive(victim)
        batches.close()
        restarts = loader.counts()["worker_restarts"]
        # On a busy machine another one may give no sign for as long as a stopped one.
        assert restarts == number or (loss == signal.SIGSTOP and restarts > number)
        pids = loader.workers.pids()
    assert not any(map(is_alive, pids))


def test_a_killed_worker_is_noticed_and_its_part_made_anew():
    disturb(2, signal.SIGKILL, 10 * HANGS_S)


def test_a_stopped_worker_is_noticed_and_its_part_made_anew():
    disturb(1, signal.SIGSTOP, 1.0)


@pytest.mark.nightly
@pytest.mark.parametrize("loss, timeout_s", [(signal.SIGKILL, 10 * HANGS_S), (signal.SIGSTOP, 2.0)])
def test_twenty_workers_are_lost(loss, timeout_s):
    disturb(20, loss, timeout_s)


def test_a_loss_that_nobody_notices_would_be_seen(monkeypatch):
    """Negative control: a supervisor that does not look at the time."""
    from clipjax.data.loading.workers_processes import Processes

    monkeypatch.setattr(Processes, "end_late_ones", lambda self: None)
    with make(Numbers(8, hanging=[3]), 8, num_workers=1, timeout_s=0.2) as loader:
        wait_until_ready(loader)
        pending = loader.workers.submit(0, 0, 0, 8)
        with pytest.raises(TimeoutError):
            for part in pending.parts:
                part.result(timeout=2.0)


CHILD = """
import sys, time
sys.path[:0] = {paths!r}
import test_workers
loader = test_workers.make(test_workers.Numbers(100, delay_s=0.01), 20)
loader.batch(0)
print(*test_workers.wait_until_ready(loader), flush=True)
for _ in loader.iterate():
    time.sleep(0.01)
"""


def test_no_worker_outlives_a_parent_that_is_killed():
    here = Path(__file__).parent
    paths = [here, here.parent, here.parents[1] / "helpers"]
    code = CHILD.format(paths=list(map(str, paths)))
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    with parent:
        try:
            pids = [int(pid) for pid in parent.stdout.readline().split()]
            assert len(pids) == 2 and all(map(is_alive, pids))
            os.kill(pids[0], signal.SIGSTOP)  # not even one that cannot see its socket end
        finally:
            parent.kill()
    wait_until(lambda: not any(map(is_alive, pids)))


def test_signals_that_stop_a_run_are_for_the_parent():
    """A preemption comes to all processes of a group: the parent saves first."""
    with make(Numbers(100, delay_s=0.002), 20, num_workers=1) as loader:
        for pid in wait_until_ready(loader):
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
                os.kill(pid, number)
        loader.batch(0)
        assert loader.counts() == {}


def test_nothing_is_left_behind():
    gc.collect()  # of earlier tests
    files = len(os.listdir("/proc/self/fd"))
    loader = make(Numbers(100), 20, num_workers=1, prefetch=3)
    batches = loader.iterate()
    next(batches)
    pids = loader.workers.pids()
    assert all(map(is_alive, pids)) and len(os.listdir("/proc/self/fd")) > files
    loader.close()
    assert not any(map(is_alive, pids))
    with pytest.raises(ValueError, match="closed"):
        loader.batch(0)
    batches.close()
    del batches, loader
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == files


def test_a_dropped_loader_leaves_nothing_behind():
    loader = make(Numbers(100), 20, num_workers=1)
    loader.batch(0)
    pids, thread = loader.workers.pids(), loader.workers.thread
    del loader
    gc.collect()
    thread.join(HANGS_S)
    assert not thread.is_alive() and not any(map(is_alive, pids))


def test_a_cancelled_iteration_leaves_the_loader_whole():
    with make(Numbers(100, delay_s=0.005), 20, num_workers=1, prefetch=4) as loader:
        batches = loader.iterate()
        next(batches)
        batches.close()
        assert sorted(numbers_in(loader.batch(0))) == sorted(
            numbers_in(make(Numbers(100), 20, num_workers=0).batch(0))
        )


def test_sources_and_tokenizers_can_be_sent(tmp_path, cache):
    from archives import pairs, tar

    from clipjax.tokenizers import ClipBPE, WordPiece

    tar(tmp_path / "a.tar", pairs(12))
    folder = tmp_path / "folder"
    (folder / "a cat").mkdir(parents=True)
    content = make_source(f"tar:{tmp_path}/a.tar")[0]["image"]
    for i in range(5):
        (folder / "a cat" / f"{i}.png").write_bytes(content)
    table = tmp_path / "t.csv"
    table.write_text("image,text\n" + "".join(f"folder/a cat/{i}.png,{i}\n" for i in range(5)))
    specs = [f"tar:{tmp_path}/a.tar", f"folder:{folder}", f"csv:{table}", "synthetic:9"]
    mix = ", ".join(f'{{"spec": "{spec}", "weight": 1}}' for spec in specs[:2])
    specs.append(f"mix:[{mix}]")
    if importlib.util.find_spec("resvg_py"):
        specs.append("openmoji:all?limit=9")
    for spec in specs:
        source = make_source(spec)
        again = pickle.loads(pickle.dumps(source))
        assert len(again) == len(source) and again.fingerprint() == source.fingerprint()
        for i in range(len(source)):
            left, right = source[i], again[i]
            np.testing.assert_array_equal(left.pop("image"), right.pop("image"))
            assert left == right
    for tokenizer in (ClipBPE(context_length=16), WordPiece(context_length=16)):
        again = pickle.loads(pickle.dumps(tokenizer))
        texts = ["a photo of a cat", "Grüße, \N{ROCKET}", "x" * 90]
        np.testing.assert_array_equal(again(texts), tokenizer(texts))
        assert again.contract() == tokenizer.contract()


def test_what_a_worker_says_is_fit_for_a_terminal(capfd):
    with make(Talkative(8), 4, num_workers=1) as loader:
        loader.batch(0)
    told = capfd.readouterr().err
    assert "WARNING s3://[redacted]@bucket/" in told and r"a picture named \x1b[2J" in told
    assert "\x1b" not in told and "CANARY" not in told
