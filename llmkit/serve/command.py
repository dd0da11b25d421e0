"""`llmkit serve`: a small server that other tools can talk to as they talk to OpenAI's."""

from __future__ import annotations

import os
import sys
import time
from functools import partial
from pathlib import Path

from llmkit.command_line import show
from llmkit.device import choose_device, device_facts
from llmkit.errors import UserError
from llmkit.extras import missing_extra
from llmkit.files import cannot_read
from llmkit.generation.sampling import Sampling
from llmkit.generation.text import TextSession, stream_text
from llmkit.inference import load_model
from llmkit.model.gpt import GPT
from llmkit.parallel.world import require_alone
from llmkit.plan.precision import choose_precision
from llmkit.prompts import text_prompt
from llmkit.serve.asks import Reader
from llmkit.serve.prompt_scores import prompt_scores
from llmkit.serve.worker import Worker
from llmkit.weights import open_weights


def serve_command(
    run: Path,
    *,
    host: str,
    port: int,
    name: str | None,
    max_tokens: int | None,
    max_batch: int,
    api_key_file: Path | None,
    precision: str,
    ema: bool = False,
) -> int:
    """Serves the model of `run` until Ctrl-C. Arguments: see `serve.options`.

    Raises UserError where the model cannot be loaded, the address is taken, or the key is none.
    """
    if missing := missing_extra("serve", "starlette", "uvicorn"):
        raise UserError(f"serve: {missing}")
    require_alone("serve", os.environ)
    from llmkit.serve.app import Api
    from llmkit.serve.server import Server, is_local, listen, local_names, url

    key = None if api_key_file is None else _read_key(api_key_file)
    listening = listen(host, port)
    weights, device = open_weights(run, ema=ema), choose_device()
    tokenizer = weights.tokenizer()
    model = load_model(weights, device, choose_precision(precision, device_facts(device)))
    list(stream_text(model, tokenizer, text_prompt(tokenizer, ""), 1, Sampling(0.0)))  # what fails, fails now
    local = is_local(listening)
    if not local and key is None:
        print(
            f"WARNING: everybody who reaches {url(listening)} can use this model, for nobody is asked for a "
            "key; add --api-key-file FILE, or leave out --host",
            file=sys.stderr,
            flush=True,
        )
    score = partial(prompt_scores, model) if isinstance(model, GPT) else None
    worker = Worker(lambda: TextSession(model, tokenizer, keep=True), max_batch, score)
    name = os.fsencode(name or run.resolve().name).decode(errors="backslashreplace")
    reader = Reader(tokenizer, model.context_length, max_tokens, scores=score is not None)
    hosts = local_names(host, listening) if local and key is None else ()
    api = Api(worker, reader, name, int(time.time()), key, hosts)
    worker.start()
    show(f"serving {name!r} ({weights.origin}) at {url(listening)}; Ctrl-C ends")
    try:
        Server(api.application(), worker).run(sockets=[listening])
    except KeyboardInterrupt:  # uvicorn has ended by then, and gives the signal on
        pass
    finally:
        worker.close()
        worker.join()
        listening.close()
    print("stopped", flush=True)
    return 0


def _read_key(path: Path) -> str:
    """The key in a file. Raises UserError where there is none."""
    try:
        lines = path.read_bytes().split()
    except OSError as error:
        raise cannot_read(path, error, "write the key that clients are to send into it") from error
    if len(lines) != 1 or not lines[0].isascii():
        raise UserError(f"serve: --api-key-file {path} must hold one key, of ASCII characters without spaces")
    return lines[0].decode()
