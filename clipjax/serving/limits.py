"""What a request may cost, and the error that refuses one."""

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limits:
    """What is allowed; more is refused, with what is allowed in the answer.

    Attributes:
        body_bytes: of a request's body.
        request_s: seconds from a request's headers to its answer.
        requests: that are in work at once, their bodies' arrival included.
        waiting_rows: texts, pictures or queries that may wait for the device, of each.
        batch_rows: that go through the device together.
        batch_wait_s: seconds that the first of a batch waits for others.
        labels: of a classification.
        templates: of a classification, where it gives its own.
        prompts: labels x templates of a classification.
        texts: to embed, or of a query.
        characters: of a text.
        results: of a search.
    """

    body_bytes: int = 20 * 2**20
    request_s: float = 30.0
    requests: int = 64
    waiting_rows: int = 20_000
    batch_rows: int = 64
    batch_wait_s: float = 0.004
    labels: int = 1_000
    templates: int = 100
    prompts: int = 10_000
    texts: int = 256
    characters: int = 500
    results: int = 100


class RefusedError(Exception):
    """A request is refused.

    Args:
        status: of HTTP.
        sentence: for whoever asked; without anything of this machine.
        headers: of the answer.
    """

    def __init__(self, status: int, sentence: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(sentence)
        self.status, self.sentence, self.headers = status, sentence, headers or {}


def busy() -> RefusedError:
    """The error of a server that has as much to do as it may."""
    return RefusedError(503, "the server is busy: ask again in a second", {"retry-after": "1"})
