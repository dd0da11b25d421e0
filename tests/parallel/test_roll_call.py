"""Who was the first to fail, or has gone; with a store in memory. Real processes: test_world.py."""

from __future__ import annotations

import os
import socket
import threading
from typing import Any

import pytest
import torch
import torch.distributed as dist

from llmkit.errors import RunFault, UserError
from llmkit.parallel import roll_call
from llmkit.parallel.roll_call import Explanation, RollCall, is_broken_connection
from tests.limits import HANG

BROKEN = "Connection closed by peer"
HERE = f"{socket.gethostname()}, process {os.getpid()}"


class Memory(dict[str, bytes]):
    """A store in this process."""

    gone = False

    def clone(self) -> Memory:
        return self

    def set(self, key: str, value: str) -> None:
        self.check([])
        self[key] = value.encode()

    def check(self, keys: list[str]) -> bool:
        if self.gone:
            raise RuntimeError("Connection reset by peer")
        return all(key in self for key in keys)


@pytest.fixture
def ranks(monkeypatch):
    """Makes the ranks of a world; their threads answer at once, and end."""
    monkeypatch.setattr(roll_call, "POLL_SECONDS", 0.001)
    monkeypatch.setattr(roll_call, "ANSWER_SECONDS", 0.2)
    made: list[RollCall] = []

    def make(count: int) -> tuple[Memory, list[RollCall]]:
        store: Any = Memory()
        made.extend(RollCall(store, rank, count) for rank in range(count))
        return store, made

    yield make
    for each in made:
        each.close()


def test_an_error_of_this_process_is_its_own(ranks):
    _, (first, _) = ranks(2)
    error = KeyError("oops")
    assert first.cause(error) is error
    assert first.absent == set()


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (UserError("no such file"), UserError, "no such file"),
        (RunFault("disk full"), RunFault, "disk full"),
        (
            MemoryError("of the GPU"),
            RunFault,
            "MemoryError: of the GPU (that rank's output has the traceback)",
        ),
    ],
)
def test_a_broken_connection_is_explained_by_the_rank_that_failed(ranks, error, kind, message):
    _, (first, second, third) = ranks(3)
    assert second.cause(error) is error
    for other in (first, third):
        broken = RuntimeError(BROKEN)
        cause = other.cause(broken)
        assert type(cause) is kind
        assert str(cause) == f"rank 1 ({HERE}): {message}"
        assert other.absent == {1}
        assert other.cause(broken) is cause and other.cause(cause) is cause


def test_an_error_of_one_rank_that_is_none_of_a_connection_explains_those_of_the_others(ranks):
    """Of the same type as those that gloo raises: as PyTorch's, or of a process that tokenizes."""
    _, (first, second) = ranks(2)
    error = RuntimeError("shape '[2, 3]' is invalid for input of size 5")
    assert second.cause(error) is error
    cause = first.cause(RuntimeError(BROKEN))
    assert str(cause).startswith(f"rank 1 ({HERE}): RuntimeError: shape '[2, 3]' is invalid")


@pytest.mark.parametrize(
    "text",
    [
        "[/third_party/gloo/gloo/transport/tcp/unbound_buffer.cc:78] Timed out waiting 3000ms for recv",
        "Application timeout caused pair closure",
        "NCCL communicator was aborted on rank 1",
    ],
)
def test_what_gloo_and_nccl_say_is_of_a_connection(text: str) -> None:
    assert is_broken_connection(RuntimeError(text)) and not is_broken_connection(MemoryError(text))
    assert is_broken_connection(dist.DistBackendError("any"))


def test_who_does_not_answer_is_gone_and_who_is_blocked_is_not(ranks, monkeypatch):
    monkeypatch.setattr(roll_call, "ANSWER_SECONDS", 3.0)
    _, (first, second, third, _) = ranks(4)
    for gone in (second, third):  # the fourth rank's thread goes on, in whatever its process is
        gone.close()
        gone._thread.join(HANG)
    cause = first.cause(RuntimeError(BROKEN))
    assert str(cause).startswith(
        f"rank 1 ({HERE}) and rank 2 ({HERE}) ended without reporting an error: killed"
    )
    assert first.absent == {1, 2}
    assert isinstance(cause, RunFault) and cause.hosts == (socket.gethostname(),)


def test_the_host_of_a_device_that_failed_is_suspected_by_all(ranks, monkeypatch):
    monkeypatch.setenv("SLURMD_NODENAME", "n2")
    _, (first, second, third) = ranks(3)
    second.cause(torch.AcceleratorError("CUDA error: uncorrectable ECC error encountered"))
    monkeypatch.setenv("SLURMD_NODENAME", "n3")
    third.cause(KeyError("its own"))
    cause = first.cause(RuntimeError(BROKEN))
    assert isinstance(cause, RunFault) and cause.hosts == ("n2",)


def test_where_all_are_there_a_broken_connection_is_the_error(ranks):
    _, (first, second) = ranks(2)
    errors = [RuntimeError(BROKEN), RuntimeError("Timed out")]
    assert second.cause(errors[1]) is errors[1]
    assert first.cause(errors[0]) is errors[0]


def test_a_store_that_is_gone_is_rank_0_that_is_gone(ranks):
    store, (first, second) = ranks(2)
    store.gone = True
    cause = second.cause(RuntimeError(BROKEN))
    assert isinstance(cause, RunFault) and str(cause).startswith("rank 0, where the processes")
    assert second.absent == {0}
    error = KeyError("its own")
    assert first.cause(error) is error


def test_closing_waits_for_the_thread_which_may_be_inside_the_store(monkeypatch):
    monkeypatch.setattr(roll_call, "POLL_SECONDS", 0.0)
    inside, go_on = threading.Event(), threading.Event()

    class Slow(Memory):
        def check(self, keys: list[str]) -> bool:
            if keys:
                inside.set()
                assert go_on.wait(HANG)
            return super().check(keys)

    call = RollCall(Slow(), 1, 2)  # type: ignore[arg-type]
    assert inside.wait(HANG)
    threading.Timer(0.2, go_on.set).start()
    call.close()
    assert go_on.is_set() and not call._thread.is_alive()


def test_who_watches_all_processes_is_believed_at_once(ranks, monkeypatch):
    monkeypatch.setattr(roll_call, "ANSWER_SECONDS", HANG)
    _, (first, *_) = ranks(3)
    first.witness = lambda: Explanation([2], "rank 2 was ended by SIGKILL", ["n1"])
    cause = first.cause(RuntimeError(BROKEN))
    assert isinstance(cause, RunFault) and str(cause).startswith("rank 2 was ended by SIGKILL. Run the same")
    assert (first.gone, first.first, cause.hosts) == ({2}, 0, ("n1",))


def test_a_witness_names_rank_0_too_where_the_store_went_with_it(ranks):
    store, (_, second) = ranks(2)
    second.witness = lambda: Explanation([0], "rank 0 was ended by SIGSEGV")
    store.gone = True
    assert str(second.cause(RuntimeError(BROKEN))).startswith("rank 0 was ended by SIGSEGV")
    store.gone = False


def test_what_a_witness_says_of_nobody_or_of_this_rank_explains_no_broken_connection(ranks):
    _, (first, _) = ranks(2)
    for told in (Explanation([], "all wait for each other"), Explanation([0], "rank 0 hangs")):
        first.witness = lambda told=told: told
        assert "all wait" not in str(first.cause(RuntimeError(BROKEN)))
        assert "hangs" not in str(first.cause(RuntimeError(BROKEN)))
