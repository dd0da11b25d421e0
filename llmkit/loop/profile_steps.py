"""`monitor.profile_steps`: some steps under PyTorch's profiler, and what bounds them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from torch.profiler import record_function

from llmkit.config.mistakes import listed
from llmkit.config.schema import Config
from llmkit.engine.base import StepResult
from llmkit.loop.hook import Hook
from llmkit.monitor.profile import Recording

if TYPE_CHECKING:
    from llmkit.loop.trainer import Trainer

FOLDER = "profile"


class ProfileSteps(Hook):
    """Records the steps that are asked for, on the ranks that are, into profile/ in the run folder.

    Other steps cost nothing. What goes wrong is noted, and does not end the run.
    """

    def __init__(self, config: Config) -> None:
        monitor = config.monitor
        first, last = monitor.profile_steps or (0, -1)
        self._first, self._last, self._ranks = first, last, monitor.profile_ranks
        self._recording: Recording | None = None
        self._waited, self._begun_at = 0.0, 0

    def on_start(self, t: Trainer) -> None:
        """Begins, where the next step is to be recorded."""
        last = t.mesh.world_size - 1
        if self._first and (absent := [str(rank) for rank in self._ranks if rank > last]):
            t.console.note(
                f"monitor.profile_ranks names {listed(absent)}, and the last rank is {last}: nothing is "
                "recorded there"
            )
        self._begin_if_due(t)

    def after_step(self, t: Trainer, result: StepResult) -> None:
        """Ends after the last step, or begins before the first one."""
        if self._recording is not None and (t.state.step >= self._last or t.state.finished()):
            self._guarded(t, self._end)
        elif self._recording is None:
            self._begin_if_due(t)

    def on_end(self, t: Trainer) -> None:
        """A run that stops before the last of the steps: what was recorded is written."""
        if self._recording is not None:
            self._guarded(t, self._end)

    def _begin_if_due(self, t: Trainer) -> None:
        if self._first <= t.state.step + 1 <= self._last and t.mesh.rank in self._ranks:
            self._guarded(t, self._begin)

    def _guarded(self, t: Trainer, act: Callable[[Trainer], None]) -> None:
        try:
            act(t)
        except Exception as error:
            self._recording, self._last, t.phases.annotate = None, -1, nullcontext
            t.events.record("profile_failed", step=t.state.step, reason=f"{type(error).__name__}: {error}")
            t.console.note(f"these steps are not profiled: {type(error).__name__}: {error}")

    def _begin(self, t: Trainer) -> None:
        self._recording = Recording(t.mesh.device)
        t.phases.annotate = record_function
        self._begun_at, self._waited = t.state.step, t.phases.seconds["data"]

    def _end(self, t: Trainer) -> None:
        recording, self._recording, t.phases.annotate = self._recording, None, nullcontext
        assert recording is not None
        with t.phases.span("save"):  # which may take long, on a GPU
            # A message that ends after the profiler writes into memory which that has given back.
            t.control.settle()
            recording.stop()
        waiting, steps = t.phases.seconds["data"] - self._waited, t.state.step - self._begun_at
        name = f"step-{self._begun_at + 1}-rank-{t.mesh.rank}"
        flops = t.work.full * t.plan.tokens_per_step * steps / t.mesh.world_size
        with t.phases.span("save"):
            found = recording.write(t.folder.path / FOLDER / name, waiting, steps, flops)
        trace = str(Path(FOLDER) / f"{name}.json.gz")
        t.events.record("profile", step=t.state.step, steps=steps, path=trace, verdict=found.line())
        t.console.note(f"profile: {found.line()}; {trace}")
