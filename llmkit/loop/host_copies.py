"""Host memory for a copy of the state, from which a checkpoint is written beside training."""

from __future__ import annotations

import math
import threading
from concurrent.futures import Future, wait
from typing import TYPE_CHECKING

from llmkit.checkpoint.stage import HostMemory, chunk_sizes, room_for
from llmkit.config.memory import show_bytes
from llmkit.cores import free_memory

if TYPE_CHECKING:
    from llmkit.loop.trainer import Trainer

SHARE = 0.9
"""Of the free memory of a host, what copies of the state may take."""


class HostCopies:
    """Takes the memory beside training, in a thread, and says whether all ranks have it.

    local_size: processes of this run on this host, which share its memory.
    """

    def __init__(self, t: Trainer, local_size: int) -> None:
        checkpoint = t.config.checkpoint
        self._t, self._local_size = t, local_size
        self._wanted, self._agreed = checkpoint.background, False
        self._expected = checkpoint.every_steps > 0 or checkpoint.every_minutes > 0
        self._memory: HostMemory | None = None
        self._outcome: Future[None] = Future()
        self._size = 0
        self._most: float | None = None
        """Bytes that this rank may take of its host; None before that was looked for."""

    def prepare_if_expected(self) -> None:
        """After each step: begins to take the memory, where saves are expected.

        After the first step, when the optimizer has all of its state, it is seen how much is free; after the
        second one, when every rank of the host has seen that, it is taken.
        """
        if self._wanted and self._expected and self._memory is None:
            if self._most is None:
                self._look()
            else:
                self._take()

    def memory(self) -> HostMemory | None:
        """The memory; None: training has to wait for saves. Collective: ranks agree at the first save.

        Waits for the memory, if that is still being taken.
        """
        if self._wanted and not self._agreed:
            if self._memory is None:
                self._look()
                self._t.control.largest(0)  # no rank takes it before all have looked
                self._take()
            with self._t.phases.span("save"):
                error, self._agreed = self._outcome.exception(), True
            if self._t.control.largest(int(error is not None))[0]:
                self._wanted, self._memory = False, None
                why = "another host has not enough" if error is None else str(error).partition("\n")[0]
                self._t.console.note(
                    "training will wait while checkpoints are written, as with checkpoint.background=false: "
                    f"a copy of the state takes {show_bytes(self._size)} of host memory a process, and {why}"
                )
        return self._memory

    def close(self) -> None:
        """Waits until the memory is taken, if that has begun."""
        if self._memory is not None:
            wait([self._outcome])

    def _look(self) -> None:
        free = free_memory()
        self._most = math.inf if free is None else SHARE * free / self._local_size

    def _take(self) -> None:
        rooms = [room_for(piece) for piece in self._t.engine.read_pieces()]
        pinned, most = self._t.mesh.device.type == "cuda", self._most
        memory = self._memory = HostMemory()
        self._size = sum(chunk_sizes(rooms, pinned))

        def work() -> None:
            try:
                if most is not None and self._size > most:
                    raise MemoryError(f"this host has {show_bytes(most)} for each of its processes")
                memory.allocate(rooms, pinned)
            except Exception as error:  # whatever it is: who waits for this must hear of it
                self._outcome.set_exception(error)
            else:
                self._outcome.set_result(None)

        threading.Thread(target=work, name="memory", daemon=True).start()
