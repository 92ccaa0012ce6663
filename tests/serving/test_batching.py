"""Rows that wait together are run together, each answer goes to whoever asked."""

import asyncio
import threading

import jax
import pytest
from checkpoints import write_checkpoint
from tiny import tiny_spec

import clipjax
from clipjax.embeddings.index import Index
from clipjax.serving.batching import Batcher
from clipjax.serving.limits import Limits, RefusedError
from clipjax.serving.searching import Searcher
from clipjax.serving.service import Service


class Held:
    """A function of rows that waits to be let go on, and remembers its batches."""

    def __init__(self):
        self.batches, self.begun, self.go_on = [], threading.Event(), threading.Event()

    def __call__(self, rows):
        self.begun.set()
        assert self.go_on.wait(60)
        self.batches.append(rows)
        return [10 * row for row in rows]


@pytest.fixture
def held():
    return Held()


def test_what_waits_goes_together_and_what_is_given_up_is_left_out(held):
    batcher = Batcher(held, Limits(batch_rows=4, batch_wait_s=0, waiting_rows=9))
    first = batcher.submit([1])
    assert held.begun.wait(60)
    waiting = [batcher.submit(rows) for rows in ([2, 3], [4], [5], [6, 7])]
    large = batcher.submit([8, 9, 10])
    with pytest.raises(RefusedError, match="busy") as refused:
        batcher.submit([11])
    assert refused.value.status == 503
    assert waiting[2].cancel()
    held.go_on.set()
    assert first.result(60) == [10]
    assert [waiting[n].result(60) for n in (0, 1, 3)] == [[20, 30], [40], [60, 70]]
    assert large.result(60) == [80, 90, 100]
    batcher.close()
    assert held.batches == [[1], [2, 3, 4], [6, 7], [8, 9, 10]]


def test_one_that_is_larger_than_a_batch_is_one_of_its_own(held):
    held.go_on.set()
    batcher = Batcher(held, Limits(batch_wait_s=0), max_rows=2)
    assert batcher.submit([1, 2, 3]).result(60) == [10, 20, 30]
    batcher.close()
    with pytest.raises(RefusedError, match="busy"):
        batcher.submit([1])


def test_a_failure_reaches_all_of_its_batch_and_no_other():
    def run(rows):
        if 0 in rows:
            raise FloatingPointError("not finite")
        return rows

    batcher = Batcher(run, Limits(batch_wait_s=60, batch_rows=2))
    answers = [batcher.submit([row]) for row in (0, 1, 2, 3)]
    for answer in answers[:2]:
        with pytest.raises(FloatingPointError, match="not finite"):
            answer.result(60)
    assert [answer.result(60) for answer in answers[2:]] == [[2], [3]]
    batcher.close()


@pytest.mark.slow
def test_once_it_is_warm_nothing_is_compiled_for_a_request(index, pictures, tmp_path):
    text = {"vocab_size": 49408, "context_length": 24, "depth": 1}  # cut to 16 tokens, or not
    write_checkpoint(tmp_path, tiny_spec(image={"patch_size": 8, "depth": 1}, text=text))
    opened, limits = Index.open(index), Limits(batch_rows=3, batch_wait_s=0.1)
    searcher = Searcher(opened, opened.source(), limits.results)
    service = Service(clipjax.load(tmp_path, batch_size=3), limits, searcher=searcher)
    picture, compiled = (pictures / "03.png").read_bytes(), []

    def listen(event, seconds, **more):
        if event.endswith("backend_compile_duration"):
            compiled.append(event)

    async def ask(number):
        asked = [service.embed_picture(picture) for _ in range(number)]
        asked += [service.embed_texts([words] * number) for words in ("a cat", "a " * 20)]
        asked += [service.search([f"number {n}"], None, [], number) for n in range(5 * number)]
        await asyncio.gather(*asked)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        service.warm_up()
        warm = len(compiled)
        assert warm >= 3 * (1 + 2) + 5
        for number in (1, 2, 3):
            asyncio.run(ask(number))
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
        service.close()
    assert len(compiled) == warm
