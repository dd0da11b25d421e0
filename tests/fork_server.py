"""Processes that start in milliseconds: a server that has imported what they need forks them.

    process = start("llmkit", ["train", "tiny.yaml"], cwd=folder, environment=environment())
    assert process.wait(HANG) == 0, process.output()

`start` stands for `subprocess.Popen([sys.executable, "-m", module, *arguments], ...)`. The child has the
arguments, environment, working directory, standard streams and signal handlers of such a process and ends
like one: exit code, atexit functions, death by a signal. It differs in three ways: its parent is the
server; all children have the server's hash seed; libraries that read the environment when they are
imported have read the server's (OMP_NUM_THREADS is applied again; MKL reads MKL_CBWR at its first use).
Tests of launching itself start real processes.

The server has one thread and computes nothing, so that its copies are sound. It ends with the process that
started it, and then kills those of its children that still run.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).parents[1]
PRELOADED = (
    "torch._dynamo",
    "torch._inductor.compile_fx",
    "llmkit.train",
    "llmkit.engine.zero",
    "llmkit.parity.suite",
)
"""Modules that nearly every child needs and that take long to import."""
LARGEST = 1 << 17
"""Bytes of a request, at most."""


class Process:
    """A child of the server."""

    def __init__(self, status: socket.socket, log: IO[bytes]) -> None:
        self.returncode: int | None = None
        self._status, self._log = status, log
        self.pid = int(self._receive())

    def poll(self) -> int | None:
        """The exit code, -9 for death by signal 9; None while the process runs."""
        return self._ended(0.0)

    def wait(self, timeout: float) -> int:
        """The exit code once the process has ended. One that has not within `timeout` seconds is killed."""
        if self._ended(timeout) is None:
            self.kill()
            self._ended(None)
            raise TimeoutError(f"no end after {timeout} s: {self.output()}")
        assert self.returncode is not None
        return self.returncode

    def output(self) -> str:
        """What the process has written to standard output and standard error until now."""
        self._log.flush()
        return os.pread(self._log.fileno(), os.fstat(self._log.fileno()).st_size, 0).decode(errors="replace")

    def kill(self) -> None:
        """Sends SIGKILL, if the process runs."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):  # it has just ended
                os.kill(self.pid, signal.SIGKILL)

    def _ended(self, timeout: float | None) -> int | None:
        if self.returncode is None:
            self._status.settimeout(timeout)
            with contextlib.suppress(TimeoutError, BlockingIOError):
                self.returncode = int(self._receive())
                self._status.close()
        return self.returncode

    def _receive(self) -> bytes:
        message = self._status.recv(32)
        assert message, "the fork server has ended; its errors are on standard error"
        return message


def start(
    module: str,
    arguments: Sequence[str],
    *,
    cwd: Path,
    environment: dict[str, str],
    log: IO[bytes] | None = None,
) -> Process:
    """Starts `python -m module arguments`.

    log: takes standard output and standard error, a temporary file where it is None. Standard input is empty.
    """
    call = {"module": module, "arguments": list(arguments), "cwd": str(cwd), "environment": environment}
    request = json.dumps(call).encode()
    assert len(request) <= LARGEST
    log = log or tempfile.TemporaryFile()  # noqa: SIM115
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        socket.send_fds(_server(), [request], [theirs.fileno(), log.fileno()])
    return Process(ours, log)


@cache
def _server() -> socket.socket:
    """The way to the server of this process, which is started at first use."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    of_children = ("OMP_NUM_THREADS", "TORCH_COMPILE_DISABLE")  # a test may have set them for its own
    environment = {name: value for name, value in os.environ.items() if name not in of_children}
    environment["OPENBLAS_NUM_THREADS"] = "1"  # it would start threads as numpy is imported
    environment["OMP_WAIT_POLICY"] = "PASSIVE"  # threads that spin stand still on a busy machine
    environment["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"  # a driver that is in use is lost in copies
    with theirs:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.fork_server", str(theirs.fileno())],
            cwd=ROOT, env=environment, pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
        )  # fmt: skip

    def end() -> None:
        ours.close()
        process.wait()

    atexit.register(end)
    return ours


def _serve(requests: socket.socket) -> dict[str, Any] | None:
    """Forks a child for each request. Returns in a child: its request; in the server, at its end: None."""
    on_interrupt = signal.signal(signal.SIGINT, signal.SIG_IGN)  # pytest ends at it, and so does the server
    running: dict[int, tuple[int, int]] = {}  # file descriptor of a process -> its number, where to report
    poll = select.poll()
    poll.register(requests, select.POLLIN)
    while True:
        for ready, _ in poll.poll():
            if ready in running:
                poll.unregister(ready)
                pid, status = running.pop(ready)
                _, code = os.waitpid(pid, 0)
                with contextlib.suppress(OSError):  # nobody may want to know any more
                    os.write(status, str(os.waitstatus_to_exitcode(code)).encode())
                os.close(ready)
                os.close(status)
                continue
            request, descriptors, _, _ = socket.recv_fds(requests, LARGEST, 2)
            if not request:
                for pid, _ in running.values():
                    os.kill(pid, signal.SIGKILL)
                return None
            status, log = descriptors
            pid = os.fork()
            if pid == 0:
                signal.signal(signal.SIGINT, on_interrupt)
                os.dup2(log, 1)
                os.dup2(log, 2)
                held = [*running, *(other for _, other in running.values())]
                for descriptor in (status, log, requests.detach(), *held):
                    os.close(descriptor)
                return dict(json.loads(request))
            process = os.pidfd_open(pid)
            running[process] = (pid, status)
            poll.register(process, select.POLLIN)
            os.write(status, str(pid).encode())
            os.close(log)


def _main(descriptor: int) -> None:
    for module in PRELOADED:
        importlib.import_module(module)
    assert len(os.listdir("/proc/self/task")) == 1, "an import has started a thread: copies would lack it"
    # Else every process would measure for half a second how fast this machine is.
    sys.modules["llmkit.monitor.hardware"]._matrix_rate = lambda *_: 1e11  # type: ignore[attr-defined]
    gc.collect()
    gc.freeze()
    with socket.socket(fileno=descriptor) as requests:
        call = _serve(requests)
    if call is None:
        return
    os.environ.clear()
    os.environ.update(call["environment"])
    os.chdir(call["cwd"])
    sys.path[:1] = [call["cwd"], *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    sys.argv[1:] = call["arguments"]
    if "OMP_NUM_THREADS" in os.environ:
        import torch

        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    if "torch._dynamo.config" in sys.modules:  # read the variable when it was imported
        compiler: Any = sys.modules["torch._dynamo.config"]
        compiler.disable = os.environ.get("TORCH_COMPILE_DISABLE") == "1"
    runpy.run_module(call["module"], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    _main(int(sys.argv[1]))
