"""Files that are opened a few at a time, and what cannot be opened for reasons of no damage."""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from llmkit.checkpoint import read, writer
from llmkit.checkpoints.listing import lines_of
from llmkit.errors import RunFault, UserError


def newest(root: Path) -> tuple[int | None, list[str]]:
    """The step of the newest good checkpoint, and what was said on the way to it."""
    said: list[str] = []
    found = read.newest(root, said.append)
    return (found.step if found else None), said


@pytest.fixture
def few_files() -> Iterator[None]:
    """A process that may open 150 files more, as others may 1,024."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    newest = max(map(int, os.listdir("/proc/self/fd")))
    resource.setrlimit(resource.RLIMIT_NOFILE, (newest + 150, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_more_files_than_a_process_may_open(
    tmp_path: Path, save_step: Any, pieces: Any, few_files: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "FILE_BYTES", 1)
    many = {f"tensor{number}": torch.full((2,), float(number)) for number in range(350)}
    for step in (1, 2):
        folder = save_step(step, pieces=pieces(many), keep_last=1)
    assert len(list(folder.iterdir())) > 1000
    assert newest(tmp_path) == (2, [])
    checkpoint = read.load(folder)
    for _ in range(2):
        for name, tensor in many.items():
            assert torch.equal(checkpoint.read(name, "exp_avg"), tensor + 1)


def test_of_many_files_only_what_is_read_is_opened(
    save_step: Any, pieces: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "FILE_BYTES", 1)
    folder = save_step(1, pieces=pieces({f"tensor{number}": torch.ones(2) for number in range(50)}))
    opened: list[str] = []
    open_ = os.open

    def recording(path: Any, *arguments: Any, **settings: Any) -> int:
        opened.append(Path(path).name)
        return open_(path, *arguments, **settings)

    monkeypatch.setattr(os, "open", recording)
    checkpoint = read.load(folder)
    assert opened == ["manifest.json", "index.safetensors"]
    checkpoint.read("tensor3", "master")
    assert opened[2:] == ["pieces-00000-00009.safetensors"]
    checkpoint.check_sizes()
    (folder / "pieces-00000-00149.safetensors").unlink()
    with pytest.raises(read.Damaged, match=r"pieces-00000-00149\.safetensors: No such file"):
        checkpoint.check_sizes()
    assert [line.split(":")[0] for line in read.verify(folder)] == [
        str(folder / "pieces-00000-00149.safetensors")
    ]


@pytest.mark.parametrize(
    ("number", "kind", "says"),
    [
        (errno.EMFILE, RunFault, "cannot be opened now (Too many open files)"),
        (errno.EACCES, UserError, "read access"),
        (errno.ESTALE, RunFault, "cannot be read now (Stale file handle): its disk does not answer"),
        (errno.ETIMEDOUT, RunFault, "cannot be read now (Connection timed out)"),
    ],
)
def test_what_cannot_be_opened_is_not_taken_for_damage(
    tmp_path: Path, save_step: Any, monkeypatch: pytest.MonkeyPatch, number: int, kind: type, says: str
) -> None:
    """An older checkpoint must not be taken instead of a good one."""
    save_step(1)
    newer = str(save_step(2) / "pieces-00000-00000.safetensors")
    open_ = os.open

    def failing(path: Any, *arguments: Any, **settings: Any) -> int:
        if str(path) == newer:
            raise OSError(number, os.strerror(number), newer)
        return open_(path, *arguments, **settings)

    monkeypatch.setattr(os, "open", failing)
    with pytest.raises(kind) as refused:
        newest(tmp_path)
    assert says in str(refused.value)
    assert not isinstance(refused.value, read.Damaged)


@pytest.mark.drill(
    "D17",
    injection="a file server that has gone (ESTALE) as a checkpoint is looked for, opened, examined and read",
    expected="the start ends with the reason; no older checkpoint is taken, nothing is deleted",
)
@pytest.mark.parametrize("call", ["listdir", "open", "lstat", "preadv"])
def test_a_stale_handle_ends_the_start(
    tmp_path: Path, save_step: Any, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    save_step(1)
    newer = save_step(2)
    real = getattr(os, call)

    def failing(what: Any, *arguments: Any, **settings: Any) -> Any:
        path = os.readlink(f"/proc/self/fd/{what}") if isinstance(what, int) else os.fspath(what)
        if path == (str(tmp_path) if call == "listdir" else str(newer / "tokenizer.json")):
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), path)
        return real(what, *arguments, **settings)

    checkpoint = read.load(newer)
    with monkeypatch.context() as patch:
        patch.setattr(os, call, failing)
        with pytest.raises(RunFault, match="Stale file handle") as refused:
            newest(tmp_path)
            checkpoint.check_sizes()
        assert not isinstance(refused.value, read.Damaged) and "\n" not in str(refused.value)
        if call in ("open", "preadv"):
            assert read.verify(newer) == [str(refused.value)]
            assert [line.state for line in lines_of(tmp_path, quick=False)] == ["good", "unreadable"]
    assert newest(tmp_path) == (2, [])


def test_a_path_on_a_disk_that_does_not_answer_is_no_missing_checkpoint(
    tmp_path: Path, save_step: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_step(1)
    real = os.stat

    def failing(path: Any, *arguments: Any, **settings: Any) -> Any:
        if os.fspath(path) == str(tmp_path):
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), str(path))
        return real(path, *arguments, **settings)

    with monkeypatch.context() as patch:
        patch.setattr(os, "stat", failing)
        with pytest.raises(RunFault, match=r"cannot be read now \(Stale file handle\)"):
            read.open(tmp_path)
