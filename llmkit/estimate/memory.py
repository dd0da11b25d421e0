"""Memory that a plan needs of each device and of the host, by part, for the fullest rank."""

from __future__ import annotations

from dataclasses import dataclass

from llmkit.config.memory import show_bytes
from llmkit.estimate.hardware import Fleet
from llmkit.estimate.term import Term
from llmkit.plan.fitting import SAFE_SHARE, needed
from llmkit.plan.plan import Plan


@dataclass(frozen=True)
class MemoryEstimate:
    """Memory of the fullest rank, a term in bytes for each part.

    device: on the device that computes, at the largest moment of a step. host: of the process beside it.
    available: bytes of the device. known: whether activations are among the parts; of registered models
    nothing is known of them. largest_micro_batch: that fits; 0 where none does, or nothing is known.
    """

    device: tuple[Term, ...]
    host: tuple[Term, ...]
    available: int
    known: bool
    largest_micro_batch: int

    @property
    def device_bytes(self) -> int:
        """All of the device's parts."""
        return int(sum(term.value for term in self.device))

    @property
    def host_bytes(self) -> int:
        """All of the host's parts."""
        return int(sum(term.value for term in self.host))

    @property
    def fits(self) -> bool:
        """Whether a step fits into the device by estimate."""
        return self.device_bytes <= self.available


def memory_of(plan: Plan, fleet: Fleet) -> MemoryEstimate:
    """The memory of a plan, whose layout is for as many processes as the fleet has devices."""
    room = int(fleet.device.memory)
    now = needed(plan, plan.micro_batch_size, plan.layout)
    state, layout = now.state, plan.layout
    parts = {
        **{name: size for name, size in state.parts.items() if name not in state.on_host},
        "activations": now.activations or 0,
    }
    terms = tuple(Term(name, size, "bytes", show_bytes(size)) for name, size in parts.items())
    host = (Term("offloaded", state.host, "bytes", show_bytes(state.host)),) if state.host else ()
    known, rows = now.activations is not None, plan.rows_per_rank
    micros = [n for n in range(1, rows + 1) if rows % n == 0] if known else []
    fitting = (n for n in micros if needed(plan, n, layout).on_device <= SAFE_SHARE * room)
    return MemoryEstimate(terms, host, room, known, max(fitting, default=0))
