"""The HTTP server: uvicorn on a socket of ours."""

from __future__ import annotations

import ipaddress
import socket
from typing import Any

import uvicorn

from llmkit.errors import UserError
from llmkit.serve.worker import Worker

GRACE = 5
"""Seconds that answers have to end when the server stops."""
LOCAL_NAMES = ("localhost", "127.0.0.1", "::1")


class Server(uvicorn.Server):
    """Serves an application until Ctrl-C, SIGTERM, or `should_exit` is set; ends the answers at work."""

    def __init__(self, application: Any, worker: Worker) -> None:
        super().__init__(
            uvicorn.Config(
                application, http="h11", ws="none", lifespan="off", log_level="warning", access_log=False,
                server_header=False, timeout_graceful_shutdown=GRACE,
            )
        )  # fmt: skip
        self._worker = worker

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Called by uvicorn when it stops listening."""
        self._worker.close()
        await super().shutdown(sockets)


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens. Raises UserError where the address is none of this machine or is taken."""
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family)
    except (OSError, UnicodeError) as error:
        why = getattr(error, "strerror", None) or error
        raise UserError(
            f"serve: cannot listen at {host} port {port} ({why}); name another address with --host and --port"
        ) from error


def is_local(listening: socket.socket) -> bool:
    """Whether only programs of this machine can reach it."""
    return ipaddress.ip_address(listening.getsockname()[0].partition("%")[0]).is_loopback


def local_names(host: str, listening: socket.socket) -> tuple[str, ...]:
    """Names of a server for this machine: `host` as the user gave it, its address, and the usual."""
    return tuple(dict.fromkeys((host.lower(), listening.getsockname()[0], *LOCAL_NAMES)))


def url(listening: socket.socket) -> str:
    """Where it is reached, as clients want it."""
    host, port = listening.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}/v1"
