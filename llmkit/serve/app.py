"""The routes: https://platform.openai.com/docs/api-reference, of completions, chats and models."""

from __future__ import annotations

import asyncio
import hmac
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from llmkit.serve.answers import Answers
from llmkit.serve.asks import Reader
from llmkit.serve.bodies import Body, ChatBody, CompletionBody, read_body
from llmkit.serve.errors import ApiError
from llmkit.serve.replies import LAST_EVENT, Reply, event
from llmkit.serve.worker import Worker

MOST_BYTES = 4 << 20
"""Of the body of a request."""
LEFT = 499
"""Status of what nobody reads any more (nginx's)."""

Handler = Callable[[Request], Awaitable[Response]]


class Document(JSONResponse):
    """JSON in ASCII, as the events have it: halves of characters that a client sent can be named to it."""

    def render(self, content: Any) -> bytes:
        """See `JSONResponse.render`."""
        return json.dumps(content).encode()


@dataclass
class Api:
    """The application. name: what clients call the model. key: what they must send; None = nothing.

    hosts: names by which browsers may reach the server; empty = any. Without this, a page from anywhere whose
    own name leads to this machine could use a server that trusts everybody here.
    """

    worker: Worker
    reader: Reader
    name: str
    created: int
    key: str | None = None
    hosts: Sequence[str] = ()
    # Prompts are read one at a time and beside the event loop: long ones take a while.
    _reading: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1))

    def application(self) -> Starlette:
        """For an ASGI server."""
        routes = [
            Route("/health", self._health),
            Route("/v1/models", self._open(self._models)),
            Route("/v1/models/{name:path}", self._open(self._model)),
            Route("/v1/completions", self._open(self._completions), methods=["POST"]),
            Route("/v1/chat/completions", self._open(self._chat), methods=["POST"]),
        ]
        handlers: Any = {
            ApiError: _of_refused, HTTPException: _of_http, ClientDisconnect: _of_left, Exception: _of_bug,
        }  # fmt: skip
        return Starlette(routes=routes, exception_handlers=handlers)

    def _open(self, handler: Handler) -> Handler:
        """The handler for those alone who may use the server."""

        async def checked(request: Request) -> Response:
            """Raises ApiError for a host that is not this one, and for a missing or wrong key."""
            host = re.sub(r":\d*$", "", request.headers.get("host", "")).strip("[]").lower()
            if self.hosts and host not in self.hosts:
                raise ApiError(
                    f"this server is not {host!r:.80}; call it {self.hosts[0]}, or start it with an API key",
                    status=403,
                )
            scheme, _, key = request.headers.get("authorization", "").partition(" ")
            if self.key is not None and not (
                scheme.lower() == "bearer" and hmac.compare_digest(key.strip().encode(), self.key.encode())
            ):
                raise ApiError("the API key is missing or wrong", status=401, code="invalid_api_key")
            return await handler(request)

        return checked

    async def _health(self, request: Request) -> Response:
        return Document({"status": "ok"})

    async def _models(self, request: Request) -> Response:
        return Document({"object": "list", "data": [self._described()]})

    async def _model(self, request: Request) -> Response:
        self._check_name(request.path_params["name"])
        return Document(self._described())

    def _described(self) -> dict[str, Any]:
        return {"id": self.name, "object": "model", "created": self.created, "owned_by": "llmkit"}

    def _check_name(self, name: str) -> None:
        if name != self.name:
            raise ApiError(
                f"there is no model {name!r:.100} here; this server has {self.name!r}",
                status=404,
                param="model",
                code="model_not_found",
            )

    async def _completions(self, request: Request) -> Response:
        body = read_body(CompletionBody, await _read(request))
        return await self._answer(request, body, len(body.prompts), body.echo)

    async def _chat(self, request: Request) -> Response:
        return await self._answer(request, read_body(ChatBody, await _read(request)))

    async def _answer(self, request: Request, body: Body, prompts: int = 1, echo: bool = False) -> Response:
        self._check_name(body.model)
        loop = asyncio.get_running_loop()
        asks = await loop.run_in_executor(self._reading, self.reader.asks, body)
        answers = Answers(self.worker, self.reader.tokenizer, asks, prompts, echo)
        reply = Reply(isinstance(body, ChatBody), self.name, self.reader.tokenizer)
        if body.stream:
            events = _events(answers, reply, len(asks), body.stream_options.include_usage)
            return StreamingResponse(
                events, media_type="text/event-stream", headers={"Cache-Control": "no-cache"}
            )
        found = await _unless_left(request, answers)
        if found is None:
            return Response(status_code=LEFT)
        return Document(reply.whole(found, answers.usage))


async def _read(request: Request) -> bytes:
    """The body of a request, which must say that it is JSON: pages of other origins cannot send that."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise ApiError("the header Content-Type must be application/json", status=415)
    data = bytearray()
    async for chunk in request.stream():
        data += chunk
        if len(data) > MOST_BYTES:
            raise ApiError(f"the body is larger than {MOST_BYTES} bytes", status=413)
    return bytes(data)


async def _unless_left(request: Request, answers: Answers) -> Any:
    """The whole answers; None where the client goes away before, which cancels them."""

    async def left() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    whole, leaving = asyncio.ensure_future(answers.whole()), asyncio.ensure_future(left())
    try:
        await asyncio.wait({whole, leaving}, return_when=asyncio.FIRST_COMPLETED)
        return whole.result() if whole.done() else None
    finally:
        answers.cancel()
        whole.cancel()
        leaving.cancel()


async def _events(answers: Answers, reply: Reply, count: int, usage: bool) -> AsyncIterator[bytes]:
    """The answers as a stream of events; an error becomes one, as the status is sent already."""
    try:
        if reply.chat:
            for number in range(count):
                yield event(reply.begin(number))
        async for part in answers.parts():
            if part.text or part.tokens or part.end:
                yield event(reply.part(part))
        if usage:
            yield event(reply.usage(answers.usage))
        yield LAST_EVENT
    except ApiError as error:
        yield event(error.body)
    finally:
        answers.cancel()


async def _of_refused(request: Request, error: ApiError) -> Response:
    """Of a request that the server does not answer."""
    return Document(error.body, status_code=error.status)


async def _of_http(request: Request, error: HTTPException) -> Response:
    """Of a path or a method that does not exist."""
    found = ApiError(f"{request.method} {request.url.path:.100}: {error.detail}", status=error.status_code)
    return Document(found.body, status_code=error.status_code, headers=error.headers)


async def _of_left(request: Request, error: ClientDisconnect) -> Response:
    """Of a client that goes away before its body has come."""
    return Response(status_code=LEFT)


async def _of_bug(request: Request, error: Exception) -> Response:
    """Of a bug, whose traceback goes to the server's output."""
    return Document(ApiError("the server failed", status=500).body, status_code=500)
