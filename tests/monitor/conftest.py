"""What the tests of wandb share: a clean environment, a stand-in server, a way to wait for a fact."""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from fake_wandb import FakeServer

from tests.limits import HANG

KEY = "canary" + "0123456789" * 3 + "abcd"  # 40 characters, as wandb wants them


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with FakeServer() as fake:
        thread = threading.Thread(target=fake.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        yield fake
        fake.answers.set()
        fake.shutdown()


@pytest.fixture
def silent_url() -> Iterator[str]:
    """A server that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


@pytest.fixture
def refused_url() -> str:
    """A place where no server listens."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return f"http://127.0.0.1:{listening.getsockname()[1]}"


@pytest.fixture
def unknown_url() -> str:
    """The address of a host that no name server knows."""
    return "http://wandb.invalid"


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """The environment of a user without any W&B account, with an empty home."""
    home = tmp_path / "home"
    home.mkdir()
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("WANDB_", "NETRC"))}
    return {**kept, "HOME": str(home)}


@pytest.fixture
def online(environment: dict[str, str]) -> Callable[[str], dict[str, str]]:
    """The environment of a user with a key for the server at a URL."""
    return lambda url: {**environment, "WANDB_API_KEY": KEY, "WANDB_BASE_URL": url}


@pytest.fixture
def until() -> Callable[..., None]:
    """Waits for a fact to become true; fails with what `describe` says if it does not."""

    def wait(fact: Callable[[], bool], describe: Callable[[], str] = lambda: "") -> None:
        give_up = time.monotonic() + HANG
        while not fact():
            assert time.monotonic() < give_up, f"still waiting; {describe()}"
            time.sleep(0.02)

    return wait
