"""A server of a small random model in this process, on a free port."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial

import openai

from llmkit.data.tokens.chat import CHATML
from llmkit.data.tokens.tokenizer import Tokenizer
from llmkit.generation.text import TextSession
from llmkit.model.gpt import GPT
from llmkit.serve.app import Api
from llmkit.serve.asks import Reader
from llmkit.serve.prompt_scores import prompt_scores
from llmkit.serve.server import Server, listen, url
from llmkit.serve.worker import Worker
from tests.data.tokens.tokenizers_for_tests import bytes_tokenizer
from tests.limits import HANG
from tests.shapes import LLAMA_STYLE, random_model

NAME = "runs/tiny"
CONTEXT = 160


def make_tokenizer(template: str | None = CHATML) -> Tokenizer:
    files = bytes_tokenizer("<|end|>").files()
    config = json.loads(files["tokenizer_config.json"]) | {"chat_template": template}
    return Tokenizer.from_config(files["tokenizer.json"].decode(), config)


def make_model() -> GPT:
    shape = replace(LLAMA_STYLE, vocab_size=257, padded_vocab_size=264, max_position_embeddings=CONTEXT)
    return random_model(shape).eval().requires_grad_(False)


@dataclass
class Running:
    """The server and what it works with. url: of the API."""

    model: GPT
    tokenizer: Tokenizer
    worker: Worker
    server: Server
    url: str

    def client(self, **options) -> openai.OpenAI:
        return openai.OpenAI(
            base_url=self.url, **{"api_key": "none", "max_retries": 0, "timeout": HANG} | options
        )


@contextlib.contextmanager
def running(
    *, key: str | None = None, hosts: tuple[str, ...] = (), session=TextSession, rows: int = 4, **limits
) -> Iterator[Running]:
    model, tokenizer = make_model(), make_tokenizer()
    worker = Worker(lambda: session(model, tokenizer), rows, partial(prompt_scores, model))
    api = Api(worker, Reader(tokenizer, CONTEXT, **{"scores": True} | limits), NAME, 7, key, hosts)
    listening = listen("127.0.0.1", 0)
    server = Server(api.application(), worker)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    worker.start()
    thread.start()
    try:
        yield Running(model, tokenizer, worker, server, url(listening))
    finally:
        server.should_exit = True
        thread.join(HANG)
        worker.close()
        worker.join()
        listening.close()
