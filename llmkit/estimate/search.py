"""The layouts that a run may have on a fleet, and which of them are fastest by estimate.

Each candidate is a `Plan` that `resolve_plan` has made of the configuration with a layout's settings, so that
what is recommended is what training does; a layout that it refuses is none. A further way to share a run out
is a further entry of `DIMENSIONS`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from llmkit.config.context import context_form
from llmkit.config.load import Loaded
from llmkit.config.model_section import Model
from llmkit.config.schema import Config
from llmkit.errors import UserError
from llmkit.estimate.calibration import MEASURED
from llmkit.estimate.facts import facts_of
from llmkit.estimate.hardware import Fleet
from llmkit.estimate.memory import MemoryEstimate, memory_of
from llmkit.estimate.rates import Rates
from llmkit.estimate.step_time import StepEstimate, step_time
from llmkit.plan.facts import DeviceFacts
from llmkit.plan.plan import Known, Plan
from llmkit.plan.resolve import resolve_plan

Chosen = dict[str, Any]
"""Value of each setting of a layout by its dotted key, in the order of `DIMENSIONS`."""
MICRO_BATCH, WORLD = "train.micro_batch_size", "parallel.world_size"
HOST_SHARE = 3.0
"""A host's memory, over that of its devices, where it is not known: as of a DGX H100 (2 TB, 8 x 80 GB)."""
HOST_WORTH = 0.1
"""What a missing byte of a host's memory counts beside one of a device's: it is easier to add."""
SPARE = 0.05
"""Share of a device's memory, and of its host's, that a layout leaves free: activations are estimated to
10 %, context and fragmentation are assumed, and the host has a system to run."""
LONG_ROW, LONG_PIECE = 16_384, 4096
"""Tokens of a row from which on sharing it between ranks is tried, and of a piece at least: below, the
exchanges of attention are small, and rows that fit train faster one by one."""
ALIKE = 1.01
"""Step times whose ratio is below this count as the same: estimates are no better."""


@dataclass(frozen=True)
class Dimension:
    """A setting that a layout decides. values: those to try, given the settings before it."""

    path: str
    values: Callable[[Config, Fleet, Chosen], Sequence[Any]]


def _tensor_sizes(config: Config, fleet: Fleet, chosen: Chosen) -> list[int]:
    """Powers of 2 within a node; what the heads do not divide is refused later."""
    sizes = [2**n for n in range(fleet.devices_per_node.bit_length())]
    return [size for size in sizes if fleet.devices_per_node % size == 0]


def _context_sizes(config: Config, fleet: Fleet, chosen: Chosen) -> list[int]:
    """Powers of 2 within a node that leave each rank enough of a long row; for short rows none."""
    length, ranks = config.data.sequence_length, fleet.devices_per_node
    ranks //= chosen["parallel.tensor_parallel_size"]
    if length < LONG_ROW or config.train.objective != "causal_lm":
        return [config.parallel.context_parallel_size]
    sizes = [2**n for n in range(ranks.bit_length()) if ranks % 2**n == 0 and length >> n >= LONG_PIECE]
    return sorted({*sizes, config.parallel.context_parallel_size})


def _sequence_parallel(config: Config, fleet: Fleet, chosen: Chosen) -> list[bool]:
    """With tensor parallelism wherever rows can be cut: it sends as much and keeps less."""
    size = chosen["parallel.tensor_parallel_size"]
    pieces = chosen["parallel.context_parallel_size"]
    parallel = config.parallel.model_copy(
        update={"tensor_parallel_size": size, "context_parallel_size": pieces}
    )
    if pieces > 1 and context_form(config.model_copy(update={"parallel": parallel})) == "ring":
        pieces *= 2
    return [size > 1 and config.data.sequence_length % (size * pieces) == 0]


def _stages(config: Config, fleet: Fleet, chosen: Chosen) -> list[int]:
    """All, as far as there are ranks to share with."""
    alone = fleet.size == chosen["parallel.tensor_parallel_size"]
    return [0] if alone and fleet.device.architecture == "cpu" else [0, 3] if alone else [0, 1, 2, 3]


def _engines(config: Config, fleet: Fleet, chosen: Chosen) -> list[str]:
    """Those of a stage; of our own at stage 2 see `_is_tried`."""
    stage, both = chosen["parallel.zero_stage"], ["native", "deepspeed"]
    return {0: ["native"], 1: both, 2: both}.get(stage, ["deepspeed"])


def _offloads(config: Config, fleet: Fleet, chosen: Chosen) -> list[str]:
    """To the host's memory, which only DeepSpeed does, and only where the device's is another."""
    if chosen["parallel.engine"] != "deepspeed" or fleet.device.architecture == "cpu":
        return ["none"]
    alone = fleet.size == chosen["parallel.tensor_parallel_size"]  # ZeRO serves nothing else there
    return ["cpu"] if alone else ["none", "cpu"]


def _expert_sizes(config: Config, fleet: Fleet, chosen: Chosen) -> list[int]:
    """Powers of 2 that leave each rank as many experts, where our own engine has them to deal out."""
    model = config.model
    experts = model.moe.num_experts if isinstance(model, Model) else 0
    if not experts or chosen["parallel.engine"] != "native" or config.train.objective != "causal_lm":
        return [1]
    ranks = fleet.size // chosen["parallel.tensor_parallel_size"]
    sizes = {2**n for n in range(experts.bit_length()) if experts % 2**n == ranks % 2**n == 0}
    return sorted({*sizes, config.parallel.expert_parallel_size})


def _recomputed(config: Config, fleet: Fleet, chosen: Chosen) -> list[str]:
    return ["none", "selective", "full"]


DIMENSIONS = (
    Dimension("parallel.tensor_parallel_size", _tensor_sizes),
    Dimension("parallel.context_parallel_size", _context_sizes),
    Dimension("parallel.sequence_parallel", _sequence_parallel),
    Dimension("parallel.zero_stage", _stages),
    Dimension("parallel.engine", _engines),
    Dimension("parallel.offload", _offloads),
    Dimension("parallel.expert_parallel_size", _expert_sizes),
    Dimension("parallel.activation_checkpointing", _recomputed),
)
PATHS = (*(dimension.path for dimension in DIMENSIONS), MICRO_BATCH)
"""The settings that a search decides."""


@dataclass(frozen=True)
class Ground:
    """Where layouts are tried.

    known: what is known beside the settings. rates: of a calibrated device. host_memory: bytes of a node's
    host; None = `HOST_SHARE` times its devices' memory. facts: of the device; None = those of the table's.
    """

    fleet: Fleet
    known: Known = field(default_factory=Known)
    rates: Rates | None = None
    host_memory: float | None = None
    facts: DeviceFacts | None = None

    @property
    def host_room(self) -> float:
        """Bytes of the host's memory for each of its devices."""
        if self.host_memory is not None:
            return self.host_memory / self.fleet.devices_per_node
        return HOST_SHARE * self.fleet.device.memory

    @cached_property
    def complete(self) -> Known:
        """`known`, with the fleet's world and device."""
        facts = facts_of(self.fleet.device) if self.facts is None else self.facts
        return replace(self.known, world_size=self.fleet.size, device=facts)

    @property
    def timed(self) -> bool:
        """Whether times can be told: of a CPU only where it was calibrated."""
        return self.fleet.device.architecture != "cpu" or self.rates is not None


@dataclass(frozen=True)
class Candidate:
    """A layout with its estimates. rates: of a device that was calibrated."""

    plan: Plan
    fleet: Fleet
    memory: MemoryEstimate
    rates: Rates | None = None

    @cached_property
    def time(self) -> StepEstimate:
        """Of a step; computed when it is asked for. Raises UserError where there is no estimate."""
        if self.rates is None:
            return step_time(self.plan, self.fleet)
        return step_time(self.plan, self.fleet, self.rates, MEASURED)

    @property
    def fits(self) -> bool:
        """Whether it fits device and host, with what a recommendation leaves free."""
        return self.memory.missing(SPARE) == (0.0, 0.0)

    @property
    def device_fits(self) -> bool:
        """The device alone."""
        return self.memory.missing(SPARE)[0] == 0.0

    @property
    def host_fits(self) -> bool:
        """The host alone."""
        return self.memory.missing(SPARE)[1] == 0.0

    @property
    def saves_beside(self) -> bool:
        """Whether checkpoints are written beside training: that is asked for, and there is memory for it."""
        return self.plan.config.checkpoint.background and self.memory.has_copy(SPARE)

    @property
    def shortage(self) -> float:
        """Bytes that are missing of the device, and `HOST_WORTH` of those of its part of the host."""
        device, host = self.memory.missing(SPARE)
        return device + HOST_WORTH * host

    @property
    def settings(self) -> Chosen:
        """The settings of the layout, by dotted key."""
        return {path: setting_of(self.plan, path) for path in PATHS}

    @property
    def family(self) -> tuple[Any, ...]:
        """What tells layouts apart, beside the engine, what is recomputed, and the micro-batch."""
        layout = self.plan.layout
        sizes = layout.tensor_parallel_size, layout.context_parallel_size, layout.expert_parallel_size
        return *sizes, layout.zero_stage, layout.offload

    @property
    def effort(self) -> int:
        """How much machinery a layout takes: of two that are as fast the lesser one is better."""
        layout = self.plan.layout
        sizes = layout.tensor_parallel_size, layout.context_parallel_size, layout.expert_parallel_size
        doubled = sum(size.bit_length() - 1 for size in sizes)
        recomputed = ("none", "selective", "full").index(layout.activation_checkpointing)
        engine = 2 * (layout.engine != "native") + 5 * (layout.offload != "none")
        return layout.zero_stage + doubled + recomputed + engine


@dataclass(frozen=True)
class Found:
    """What a search has found.

    fitting: the candidates that fit, the best first. nearest: of those that do not the one that lacks least
    memory; None where all fit, or all are refused. refused: why, for each layout that is none.
    """

    fitting: tuple[Candidate, ...]
    nearest: Candidate | None
    refused: tuple[str, ...] = ()

    @property
    def families(self) -> tuple[Candidate, ...]:
        """The best of each family."""
        best: dict[tuple[Any, ...], Candidate] = {}
        for candidate in self.fitting:
            best.setdefault(candidate.family, candidate)
        return tuple(best.values())


def search(loaded: Loaded, ground: Ground, fixed: Collection[str] = ()) -> Found:
    """Tries all layouts of a configuration on a fleet; those with offloading only where no other fits.

    fixed: of `PATHS`, those that stay as the configuration has them; an automatic micro-batch is then the one
    that training takes. Where no times can be told the layout
    with the least machinery is the best one. Raises UserError for a registered model.
    """
    if not isinstance(loaded.config.model, Model):
        what = loaded.settings.describe("model.type")
        raise UserError(
            f"{what}: there is no estimate for it, as nothing is known of its layers; choose the layout "
            "yourself (`parallel`, and train.micro_batch_size on a GPU)"
        )
    fitting, unfit, refused = list[Candidate](), list[Candidate](), dict[str, None]()
    layouts = list(_layouts(loaded.config, ground.fleet, fixed, {}))
    for offloads in (False, True):
        for layout in layouts:
            if (layout["parallel.offload"] != "none") is not offloads:
                continue
            try:
                found = candidate(loaded, ground, layout, MICRO_BATCH in fixed)
            except UserError as error:
                refused[str(error)] = None
                continue
            (fitting if found.fits else unfit).append(found)
        if fitting:
            break
    nearest = min(unfit, key=lambda each: each.shortage, default=None)
    return Found(tuple(_ranked(fitting, ground.timed)), nearest, tuple(refused))


def candidate(
    loaded: Loaded, ground: Ground, layout: Mapping[str, Any], keep_micro_batch: bool = False
) -> Candidate:
    """A layout with the largest micro-batch that fits, 1 where none does. Raises UserError for one that
    training refuses."""
    if keep_micro_batch:
        return as_given(with_settings(loaded, layout), ground)
    probe = as_given(with_settings(loaded, {**layout, MICRO_BATCH: 1}), ground)
    rows, micro = probe.plan.rows_per_rank, probe.memory.largest_micro_batch
    while micro > 1:
        found = as_given(with_settings(loaded, {**layout, MICRO_BATCH: micro}), ground)
        if found.device_fits:
            return found
        micro = max(n for n in range(1, micro) if rows % n == 0)
    return probe


def as_given(loaded: Loaded, ground: Ground) -> Candidate:
    """The layout that the configuration has, on as many processes as the fleet has devices, whatever it says.

    Raises UserError where training refuses it.
    """
    plan = resolve_plan(with_settings(loaded, {WORLD: ground.fleet.size}), ground.complete)
    return Candidate(plan, ground.fleet, memory_of(plan, ground.fleet, ground.host_room), ground.rates)


def with_settings(loaded: Loaded, settings: Mapping[str, Any], origin: str = "plan") -> Loaded:
    """The configuration with other values of some settings, all of them in sections of the first level."""
    config = loaded.config
    for section in dict.fromkeys(path.partition(".")[0] for path in settings):
        mine = {path: value for path, value in settings.items() if path.startswith(f"{section}.")}
        values = {path.partition(".")[2]: value for path, value in mine.items()}
        config = config.model_copy(update={section: getattr(config, section).model_copy(update=values)})
    return replace(loaded, config=config, origins={**loaded.origins, **dict.fromkeys(settings, origin)})


def setting_of(plan: Plan, path: str) -> Any:
    """The value of a setting of `PATHS`, with nothing left open."""
    return plan.micro_batch_size if path == MICRO_BATCH else getattr(plan.layout, path.partition(".")[2])


def _layouts(config: Config, fleet: Fleet, fixed: Collection[str], chosen: Chosen) -> Iterator[Chosen]:
    """All combinations of the dimensions' values that are tried."""
    if len(chosen) == len(DIMENSIONS):
        if _is_tried(config, chosen):
            yield chosen
        return
    dimension = DIMENSIONS[len(chosen)]
    section, _, name = dimension.path.partition(".")
    given = getattr(getattr(config, section), name)
    values = [given] if dimension.path in fixed else dimension.values(config, fleet, chosen)
    for value in values:
        yield from _layouts(config, fleet, fixed, {**chosen, dimension.path: value})


def _is_tried(config: Config, chosen: Chosen) -> bool:
    """Whether a combination is tried: stage 2 of our own engine only for experts that are dealt out, and
    where the settings ask for that engine, as `engine: auto` takes it."""
    stage, engine = chosen["parallel.zero_stage"], chosen["parallel.engine"]
    whole = chosen["parallel.expert_parallel_size"] == 1
    return (stage, engine, whole) != (2, "native", True) or config.parallel.engine == "native"


def _ranked(fitting: Sequence[Candidate], timed: bool) -> list[Candidate]:
    """The fastest first; of those that are as fast the one with the least machinery."""
    if not fitting or not timed:
        return sorted(fitting, key=lambda each: each.effort)
    least = min(each.time.seconds for each in fitting)

    def key(each: Candidate) -> tuple[int, int, float]:
        behind = int(math.log(each.time.seconds / least) / math.log(ALIKE))
        return behind, each.effort, each.time.seconds

    return sorted(fitting, key=key)
