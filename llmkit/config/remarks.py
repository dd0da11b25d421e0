"""Notes on valid settings that are probably not intended: without effect, or for steps never reached."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import lcm

from llmkit.config.check_activations import activation_remarks
from llmkit.config.check_preference import preference_remarks
from llmkit.config.context import context_remarks
from llmkit.config.derive import size_of
from llmkit.config.groups import group_remarks
from llmkit.config.layers import Layers
from llmkit.config.mistakes import display
from llmkit.config.schema import Config
from llmkit.config.settings import Settings


def _all_live(config: Config) -> bool:
    return all(source.live for source in config.data.sources)


def _none_live(config: Config) -> bool:
    return not any(source.live for source in config.data.sources)


def _no_chats(config: Config) -> bool:
    return not any(source.record in ("chat", "preference") for source in config.data.sources)


def _window_sees_all(config: Config) -> bool:
    return (config.model.sliding_window or 0) >= config.data.sequence_length


def _adamw_alone(config: Config) -> bool:
    return config.optimizer.rules == {"adamw"}  # a registered optimizer is given the momentum, too


IDLE: dict[str, tuple[Callable[[Config], bool], str]] = {
    "model.rope_theta": (lambda c: c.model.position_embedding != "rope", "model.position_embedding"),
    "model.sliding_window": (_window_sees_all, "data.sequence_length"),
    "data.tokenizer.chat_template": (_no_chats, "data.sources.0.record"),
    "data.packing": (_all_live, "data.sources.0.live"),
    "data.stream_shards": (_none_live, "data.sources.0.live"),
    "data.shuffle_window": (_none_live, "data.sources.0.live"),
    "data.workers": (_none_live, "data.sources.0.live"),
    "train.max_minutes": (lambda c: c.train.max_steps is not None, "train.max_steps"),
    "train.ema.every_steps": (lambda c: not c.train.ema.on, "train.ema.decay"),
    "train.ema.evaluate": (lambda c: not c.train.ema.on, "train.ema.decay"),
    "optimizer.momentum": (_adamw_alone, "optimizer.name"),
    "optimizer.momentum_warmup_steps": (_adamw_alone, "optimizer.name"),
    "optimizer.momentum_start": (
        lambda c: c.optimizer.momentum_warmup_steps == 0, "optimizer.momentum_warmup_steps"
    ),
    "schedule.steps": (lambda c: c.schedule.name == "constant", "schedule.name"),
    "schedule.min_lr_ratio": (lambda c: c.schedule.name == "constant", "schedule.name"),
    "schedule.decay_fraction": (lambda c: c.schedule.name != "wsd", "schedule.name"),
    "schedule.decay_shape": (lambda c: c.schedule.name != "wsd", "schedule.name"),
}  # fmt: skip
"""A setting: when it has no effect, and the setting that is the reason."""


def remarks(s: Settings, layers: Layers) -> Iterator[str]:
    """Yields notes on settings without effect, or with another effect than was probably intended.

    Not on one of which a later layer has given the reason: it was overruled, as by `train.max_steps` for a
    file with `train.max_minutes`.
    """
    for path, (is_idle, reason) in IDLE.items():
        given, cause = layers.find(path, layers.all), layers.find(reason, layers.all)
        if given is None or (cause is not None and cause[0] > given[0]):
            continue
        if display(s.value(path)) != layers.default(path) and is_idle(s.config):
            yield f"{s.describe(path)} has no effect: {s.describe(reason)}"
    yield from group_remarks(s)
    yield from vocabulary_remarks(s)
    yield from preference_remarks(s)
    yield from checkpoint_remarks(s)
    yield from context_remarks(s)
    yield from activation_remarks(s)
    if s.config.train.max_steps is not None:
        yield from length_remarks(s, s.config.train.max_steps)


def checkpoint_remarks(s: Settings) -> Iterator[str]:
    """Yields notes on checkpoints that are kept otherwise than was probably meant."""
    checkpoint, evaluate = s.config.checkpoint, s.config.evaluate
    if checkpoint.keep_best and not evaluate.every_steps:
        yield (
            f"{s.describe('checkpoint.keep_best')}: the run is evaluated at its end only "
            f"({s.describe('evaluate.every_steps')}), so the best checkpoint will be its last one"
        )
    every, kept = checkpoint.every_steps, checkpoint.keep_every
    if every and kept % every:
        yield (
            f"{s.describe('checkpoint.keep_every')} is no multiple of "
            f"{s.describe('checkpoint.every_steps')}: one checkpoint in {lcm(every, kept)} steps is kept"
        )


def vocabulary_remarks(s: Settings) -> Iterator[str]:
    """Yields notes on a vocabulary that is larger than the tokenizer's."""
    asked = s.config.model.vocab_size
    if s.config.train.init_from is not None:
        return  # the weights have as many
    size = s.facts.tokenizer_size or size_of(s.config.data.tokenizer)
    if asked != "auto" and size is not None and asked > size:
        yield (
            f"{s.describe('model.vocab_size')} is larger than the tokenizer's {size}: {asked - size} ids "
            "stand for no text, cost memory and time, and are never sampled; to pad the vocabulary for "
            f"speed, leave it auto: {s.describe('model.vocab_pad_multiple')} does that"
        )


def length_remarks(s: Settings, max_steps: int) -> Iterator[str]:
    """Yields notes on settings for more steps than the run has."""
    for index, stage in enumerate(s.config.data.curriculum):
        if stage.step > max_steps:
            step = s.describe(f"data.curriculum.{index}.step")
            yield f"{step} comes after the end of the run, which has {max_steps} steps"
    if s.config.evaluate.every_steps > max_steps:
        yield (
            f"{s.describe('evaluate.every_steps')} is more than the {max_steps} steps of the run: it is "
            "evaluated at its end only"
        )
    span = s.config.schedule.steps or max_steps
    if s.config.schedule.warmup_steps >= span:
        whole = s.describe("schedule.steps") if s.config.schedule.steps else f"the {span} steps of the run"
        yield (
            f"{s.describe('schedule.warmup_steps')} is not less than {whole}: the learning rate does not get "
            "past its warm-up"
        )
