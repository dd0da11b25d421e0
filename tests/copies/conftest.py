from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from llmkit.copies.outgoing import Outgoing, Stored, stored
from llmkit.copies.store import Store, Traffic
from llmkit.data.sources.retries import RetryPolicy
from tests.copies.stores import PutServer, S3Store
from tests.data.sources.s3_server import s3_is
from tests.limits import HANG

QUICK = RetryPolicy(retries=2, first_delay=0.001, stall_seconds=HANG)


def content_of(size: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(size)


def outgoing(content: bytes, name: str = "a.bin") -> Outgoing:
    return Outgoing(stored(name, content), content)


def write_files(folder: Path, contents: dict[str, bytes]) -> list[Stored]:
    """Files of a checkpoint that is none: the store does not look into them."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return [stored(name, content) for name, content in contents.items()]


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)


@pytest.fixture
def web() -> Iterator[PutServer]:
    server = PutServer()
    yield server
    server.close()


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Store]:
    """The store that s3:// means; one for all tests, since making a client of it takes long."""
    server = S3Store()
    with s3_is(server, tmp_path_factory.mktemp("s3") / "none"):
        yield server


@pytest.fixture
def s3(s3_server: S3Store) -> S3Store:
    """The store with nothing but an empty bucket named "bucket", and no trouble."""
    s3_server.reset()
    s3_server.buckets["bucket"] = {}
    return s3_server


@pytest.fixture
def traffic() -> Traffic:
    return Traffic(QUICK)


@pytest.fixture(params=["file", pytest.param("memory", marks=pytest.mark.exhaustive), "s3", "web"])
def any_store(request: pytest.FixtureRequest, tmp_path: Path, traffic: Traffic) -> Store:
    """An empty store of each kind."""
    if request.param == "s3":
        request.getfixturevalue("s3")
        return Store("s3://bucket/runs/demo", traffic)
    if request.param == "web":
        return Store(f"{request.getfixturevalue('web').url}/runs/demo", traffic)
    if request.param == "memory":
        return Store(f"memory://{tmp_path.name}/runs/demo", traffic)
    return Store(f"file://{tmp_path}/store/runs/demo", traffic)
