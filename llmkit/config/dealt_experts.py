"""Expert parallelism: whether the experts can be dealt out as asked, and what does not go with it."""

from __future__ import annotations

from collections.abc import Iterator

from llmkit.config.mistakes import NO_STAGE_NAMED, Mistake
from llmkit.config.model_section import Model
from llmkit.config.settings import Settings

_SIZE = "parallel.expert_parallel_size"


def check_dealt_experts(s: Settings) -> Iterator[Mistake]:
    """Checks that there are experts to deal out, and ranks that get equally many."""
    config, size = s.config, s.config.parallel.expert_parallel_size
    if size == 1:
        return
    if not isinstance(config.model, Model):
        note = "only the experts of llmkit's own model are dealt out; set the size to 1"
        yield s.mistake("{0} does not go with {1}", _SIZE, "model.type", note=note)
        return
    experts = config.model.moe.num_experts
    if not experts:
        note = "the model is no mixture of experts; set the size to 1"
        yield s.mistake("{0} does not go with {1}", _SIZE, "model.moe.num_experts", note=note)
    elif experts % size:
        sizes = ", ".join(str(each) for each in range(1, experts + 1) if experts % each == 0)
        note = f"each process holds as many experts; choose one of {sizes}"
        yield s.mistake("{0} does not divide {1}", _SIZE, "model.moe.num_experts", note=note)
    yield from _check_ranks(s, size)
    yield from _check_engine(s)


def _check_ranks(s: Settings, size: int) -> Iterator[Mistake]:
    """Checks that so many ranks with other tokens can be put together."""
    parallel, ranks = s.config.parallel, s.data_parallel_size
    if ranks is None:
        return
    replicas = ranks * parallel.context_parallel_size
    if replicas % size:
        note = "experts are dealt out over those with other rows, or other tokens of them; choose a divisor"
        which = "process sees" if replicas == 1 else "processes see"
        what = f"{{0}} does not divide the processes: {replicas} {which} tokens of their own"
        yield s.mistake(what, _SIZE, note=note)


def _check_engine(s: Settings) -> Iterator[Mistake]:
    """Checks that the engine, and what is trained, know of experts that a rank does not hold."""
    parallel = s.config.parallel
    stage = parallel.zero_stage if s.facts.zero_stage is None else s.facts.zero_stage
    offload = s.facts.offload or parallel.offload
    engine = s.facts.engine or parallel.engine
    cause = "parallel.offload" if offload == "cpu" else "parallel.engine" if engine == "deepspeed" else ""
    if stage == 3:
        cause = "parallel.zero_stage"
    if cause:
        what = f"{{0}} does not go with {{1}} (ZeRO stage {stage}, by DeepSpeed)"
        note = (
            "DeepSpeed shares out experts as if all ranks held the same ones; choose stage 0, 1 or 2, no "
            "offload, and parallel.engine=native"
        )
        if s.facts.launcher_stage:
            note += f", and launch {NO_STAGE_NAMED}"
        yield s.mistake(what, _SIZE, cause, note=note)
    if s.config.train.objective != "causal_lm" or s.config.data.has_pairs:
        note = "the reference model of pairs is held whole; set the size to 1"
        yield s.mistake("{0} does not go with {1}", _SIZE, "train.objective", note=note)
