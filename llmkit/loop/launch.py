"""What a start of a run is given, before its run folder is opened."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from llmkit.config.load import Loaded
from llmkit.config.schema import Config
from llmkit.loop.hook import Hook
from llmkit.loop.options import Options
from llmkit.loop.phases import Phases
from llmkit.monitor.sink import Sink
from llmkit.parallel.mesh import Mesh
from llmkit.plan import Known, Plan


@dataclass(frozen=True)
class Launch:
    """A start of a run.

    plan: as the settings and the launch make it; what the tokenizer and the device decide is pending.
    known: what it was made from. local_size: processes of this run on this host. started: of the command, by
    `clock`, from which `train.max_minutes` counts. clock: seconds from any origin. phases: by that clock.
    own_process: whether this process is llmkit's own, so that the watchdog may end it where it hangs alone.
    """

    loaded: Loaded
    options: Options
    environment: Mapping[str, str]
    plan: Plan
    known: Known
    mesh: Mesh
    local_size: int
    started: float
    clock: Callable[[], float]
    phases: Phases
    hooks: Sequence[Hook] = ()
    sinks: Sequence[Sink] = ()
    own_process: bool = False

    @property
    def config(self) -> Config:
        return self.loaded.config
