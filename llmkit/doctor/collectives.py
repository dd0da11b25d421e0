"""Collectives tried by processes of their own: those of this machine, or of all nodes."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from statistics import median
from typing import Any

from llmkit.config.mistakes import printable
from llmkit.doctor.findings import Finding
from llmkit.doctor.scope import Scope
from llmkit.ports import free_port

JOIN_SECONDS, MORE_A_RANK = 15.0, 0.05
"""That ranks wait for each other once all have imported PyTorch, and how much longer with each of them."""
ADVICE = (
    "set NCCL_SOCKET_IFNAME or GLOO_SOCKET_IFNAME to the interface of the network between the nodes; open "
    "its ports in the firewall; NCCL_DEBUG=INFO shows more"
)


def join_seconds(world_size: int) -> float:
    """That ranks wait for each other in each step, of which joining and summing are two."""
    return JOIN_SECONDS + MORE_A_RANK * world_size


class Ranks:
    """Processes of this node, each with PyTorch imported, that wait to be joined with others.

    count: how many. Usable in a `with` statement, at whose end all are gone.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self._processes = [
            subprocess.Popen(
                [sys.executable, "-m", "llmkit.doctor.ranks", str(local)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
                start_new_session=True,
            )
            for local in range(count)
        ]  # fmt: skip

    def wait(self, seconds: float) -> bool:
        """Whether all are ready in time."""
        return [line.strip() for line in self._lines(seconds)] == ["ready"] * len(self._processes)

    def join(
        self, address: str, port: int, first: int, world_size: int, seconds: float | None = None
    ) -> list[dict[str, Any]]:
        """Makes them ranks `first` and on of a world that meets at an address; what each has measured.

        seconds: that they wait for each other, None = as many as that world may take.
        """
        seconds = join_seconds(world_size) if seconds is None else seconds
        for local, process in enumerate(self._processes):
            place = {
                "MASTER_ADDR": address, "MASTER_PORT": port, "WORLD_SIZE": world_size, "RANK": first + local,
                "LOCAL_RANK": local, "LOCAL_WORLD_SIZE": self.count,
            }  # fmt: skip
            assert process.stdin is not None
            with contextlib.suppress(BrokenPipeError):
                process.stdin.write(json.dumps([seconds, {name: str(each) for name, each in place.items()}]))
                process.stdin.write("\n")
                process.stdin.flush()
        lines = self._lines(2 * seconds + 5.0)
        return [json.loads(line) if line else {"error": "no answer: it hangs or has died"} for line in lines]

    def _lines(self, seconds: float) -> list[str]:
        """The next line of each process; "" of one that has none in time."""
        end, found = time.monotonic() + seconds, dict.fromkeys(self._processes, "")
        with selectors.DefaultSelector() as selector:
            for process in self._processes:
                assert process.stdout is not None
                selector.register(process.stdout, selectors.EVENT_READ, process)
            while selector.get_map() and (left := end - time.monotonic()) > 0:
                for key, _ in selector.select(left):
                    found[key.data] = key.data.stdout.readline()  # they write whole lines
                    selector.unregister(key.fileobj)
        return list(found.values())

    def __enter__(self) -> Ranks:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends them."""
        for process in self._processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        for process in self._processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(1.0)
            for pipe in (process.stdin, process.stdout):
                with contextlib.suppress(BrokenPipeError):
                    assert pipe is not None
                    pipe.close()


def local_findings(scope: Scope) -> Iterator[Finding]:
    """Collectives of this machine's GPUs, or of two processes where there are none.

    One node of many is not asked for the latter: it would only take time.
    """
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if scope.meeting and count < 2:
        return
    with Ranks(count or 2) as ranks:
        if not ranks.wait(scope.seconds):
            value = f"processes did not get ready within {scope.seconds:g} s"
            yield Finding("collectives", "warn", value, "check again when less runs here")
            return
        yield collectives_finding(ranks.join("127.0.0.1", free_port(), 0, count or 2), "on this machine")


def collectives_finding(results: Sequence[dict[str, Any]], where: str) -> Finding:
    """What the processes of one node have measured."""
    errors = dict.fromkeys(str(each["error"]) for each in results if "error" in each)
    if errors:
        return Finding("collectives", "fail", printable("; ".join(errors), 300), ADVICE)
    rates, joined = [float(each["rate"]) for each in results], max(float(each["joined"]) for each in results)
    value = f"{results[0]['backend']} {where}: {median(rates) / 1e9:.2f} GB/s, joined in {joined:.1f} s"
    return Finding("collectives", "ok", value, numbers={"all-reduce": median(rates)})
