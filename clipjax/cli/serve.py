"""`clipjax serve --checkpoint C [--index DIR] [--port 8000] [--host 127.0.0.1]`: over HTTP.

A page for a browser, and an API: labels for a picture, embeddings, and with what `clipjax embed`
wrote, search. On this machine alone, unless --host says otherwise; then a token is required, of the
environment variable CLIPJAX_SERVE_TOKEN or of --token_file. Ctrl-C or SIGTERM ends it.
"""

import contextlib
import math
import os
from typing import TYPE_CHECKING

from absl import flags

from clipjax import compile_cache
from clipjax.cli import hints
from clipjax.cli.main import given, no_positional
from clipjax.cli.output import show
from clipjax.processes import signals
from clipjax.serving.limits import Limits

if TYPE_CHECKING:
    from clipjax.serving.service import Service

_VARIABLE = "CLIPJAX_SERVE_TOKEN"
_CHECKPOINT = flags.DEFINE_string(
    "checkpoint", None, "Whatever `clipjax.load` reads; by default the model of the index."
)
_INDEX = flags.DEFINE_string("index", None, "Folder that `clipjax embed` wrote, to be searched.")
_DATA = flags.DEFINE_string("data", None, "SPEC of the index's pictures, if they have moved.")
_HOST = flags.DEFINE_string(
    "host", "127.0.0.1", "Address to listen at; others than this machine's own need a token."
)
_PORT = flags.DEFINE_integer(
    "port", 8000, "Port to listen at; 0 for any that is free.", lower_bound=0, upper_bound=65535
)
_TOKEN_FILE = flags.DEFINE_string(
    "token_file", None, f"File of the token that the API asks for; else that of ${_VARIABLE}."
)
_TEMPLATES = flags.DEFINE_string(
    "templates", None, "Prompt templates: a name or a file; by default the run's, else simple."
)
_BATCH_SIZE = flags.DEFINE_integer(
    "batch_size", 64, "Texts or pictures that go through the device together.", lower_bound=1
)
_BATCH_WAIT_MS = flags.DEFINE_float(
    "batch_wait_ms", 4.0, "How long the first of them waits for others.", lower_bound=0
)
_MAX_BODY_MB = flags.DEFINE_float("max_body_mb", 20.0, "Of a request.", lower_bound=0.001)
_MAX_REQUESTS = flags.DEFINE_integer("max_requests", 64, "In work at once.", lower_bound=1)
_TIMEOUT_S = flags.DEFINE_float("timeout_s", 30.0, "Of a request.", lower_bound=0.1)
flags.adopt_module_key_flags(hints)


def main(argv: list[str]) -> int:
    """Serves until a signal ends it."""
    no_positional(argv)
    if not _INDEX.value:
        given(_CHECKPOINT.value, "--checkpoint PATH")
    for flag in (_BATCH_WAIT_MS, _MAX_BODY_MB, _TIMEOUT_S):
        if not math.isfinite(flag.value):
            raise ValueError(f"--{flag.name}={flag.value} is no limit: give a number")
    with contextlib.ExitStack() as stack:
        with signals.interruptible("clipjax serve: interrupted"):
            try:
                from clipjax.serving.app import make_app
                from clipjax.serving.server import bind, make_server, read_token
            except ImportError as error:
                raise ValueError(f"it needs `pip install 'clipjax[serve]'`: {error}") from error
            token = read_token(_TOKEN_FILE.value, os.environ.get(_VARIABLE))
            listener, is_own = bind(_HOST.value, _PORT.value)
            stack.enter_context(listener)
            if not is_own and token is None:
                raise ValueError(
                    f"--host {_HOST.value} is reached from other machines: set a token for them, "
                    f"by the environment variable {_VARIABLE} or --token_file FILE"
                )
            limits = Limits(
                body_bytes=int(_MAX_BODY_MB.value * 2**20),
                request_s=_TIMEOUT_S.value,
                requests=_MAX_REQUESTS.value,
                batch_rows=_BATCH_SIZE.value,
                batch_wait_s=_BATCH_WAIT_MS.value / 1000,
            )
            service = _service(_CHECKPOINT.value, _INDEX.value, limits)
            hosts = {"localhost", "127.0.0.1", "::1", _HOST.value} if is_own else None
            app = make_app(service, token=token, hosts=hosts)
            service.warm_up()
        name = f"[{_HOST.value}]" if ":" in _HOST.value else _HOST.value
        address = f"http://{name}:{listener.getsockname()[1]}"
        pictures = f", {len(service.searcher):,} pictures" if service.searcher else ""
        words = f"serving {service.model.spec['name']}{pictures} at {address}; Ctrl-C ends it"
        make_server(app, limits, lambda: show(words)).run(sockets=[listener])
        service.close()
    return 0


def _service(checkpoint: str | None, folder: str | None, limits: Limits) -> "Service":
    from clipjax.data.storage.cache import cache_dir
    from clipjax.embeddings.index import Index
    from clipjax.embeddings.model import open_model_of
    from clipjax.inference.opened import open_model
    from clipjax.interop import Hints
    from clipjax.serving.searching import Searcher
    from clipjax.serving.service import Service

    compile_cache.use(cache_dir() / "compiled")
    what, searcher = Hints(**hints.hints()), None
    if folder:
        index = Index.open(folder)
        searcher = Searcher(index, index.source(_DATA.value), limits.results)
        opened = open_model_of(index, checkpoint, what, batch_size=limits.batch_rows)
    else:
        opened = open_model(
            given(checkpoint, "--checkpoint PATH"), what, batch_size=limits.batch_rows
        )
    return Service(opened.model, limits, searcher=searcher, templates=_TEMPLATES.value or None)
