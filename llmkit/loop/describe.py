"""A run in words, as its start says and records it: device, layout, software, and what is worth knowing."""

from __future__ import annotations

import platform
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch

from llmkit.checkpoint.pieces import EMA
from llmkit.checkpoint.read import Checkpoint
from llmkit.config.derive import size_of
from llmkit.config.load import Loaded
from llmkit.config.redaction import command_on_record
from llmkit.config.registered import components
from llmkit.config.remarks import length_remarks, vocabulary_remarks
from llmkit.config.settings import Facts, Settings
from llmkit.data.prepared import lane_lines
from llmkit.loop.launch import Launch
from llmkit.loop.resume import ResumePoint, settings_of
from llmkit.loop.state import TrainState
from llmkit.parallel.agreement import software_versions
from llmkit.registry import source_hashes

if TYPE_CHECKING:
    from llmkit.loop.trainer import Trainer


def opening_lines(t: Trainer, launch: Launch, point: ResumePoint) -> Iterator[str]:
    """What a user should know before the first step, and the settings alone do not show."""
    checkpoint = point.checkpoint
    yield from launch.plan.notes
    if checkpoint is not None and point.begins_branch:
        where = "from their beginning" if launch.options.begins_data_anew else "on from where that run stood"
        yield f"a branch: begins with {checkpoint.path} at step {t.state.step}, and reads the data {where}"
    elif checkpoint is not None:
        yield f"resuming from {checkpoint.path} at step {t.state.step}"
    yield from _remarks(checkpoint, launch.loaded, t.state, t.data.tokenizer.vocab_size)
    if checkpoint is None and t.init_from is not None:
        yield f"starting from the weights of {t.init_from['path']}"
    yield from lane_lines(t.data, t.mesh["data"].size)


def manifest(t: Trainer, loaded: Loaded) -> dict[str, Any]:
    """Content of manifest.json: what the newest start ran with."""
    return {
        **software_versions(),
        "host": platform.node(),
        "device": device_name(t.mesh.device),
        "command": command_on_record(sys.argv),
        "config": str(loaded.path),
        **t.plan.to_json(),
        "max_steps": t.state.max_steps,
        "devices": t.mesh.world_size,
        "tokens_per_step": t.plan.tokens_per_step,
        "flops_per_token": t.work.full,
        "plugins": source_hashes(t.config.plugins, components(t.config)),
        "init_from": t.init_from,
        "branched_from": t.branched_from,
        "schedule": {
            "log_every": t.config.monitor.log_every,
            "save_every": t.config.checkpoint.every_steps,
            "save_minutes": t.config.checkpoint.every_minutes,
            "evaluate_every": t.config.evaluate.every_steps if t.heldout else 0,
        },
        "currency": t.config.monitor.cost.currency,
    }


def _remarks(
    checkpoint: Checkpoint | None, loaded: Loaded, state: TrainState, tokenizer_size: int
) -> Iterator[str]:
    """What the settings alone do not show."""
    config = loaded.config
    if size_of(config.data.tokenizer) is None:  # else it is among the remarks of the configuration
        yield from vocabulary_remarks(Settings(config, loaded.origins, Facts(tokenizer_size=tokenizer_size)))
    if checkpoint is not None:
        if config.train.ema.on and EMA not in checkpoint.kinds():
            yield f"no moving average is in that checkpoint: it begins at the weights of step {state.step}"
        elif not config.train.ema.on and EMA in checkpoint.kinds():
            yield "the moving average in that checkpoint is dropped, as train.ema is off now"
        if settings_of(checkpoint).train.max_steps is not None and config.train.max_steps is None:
            yield f"train.max_steps is not set now: the run keeps the {state.max_steps} steps that it had"
    settings, asked, made = loaded.settings, config.train.max_steps, state.step
    if asked is not None and asked < made:
        yield f"{settings.describe('train.max_steps')}: {made} steps are made already, so no more are"
    elif asked is None and state.max_steps is not None:
        yield from length_remarks(settings, state.max_steps)


def device_name(device: torch.device) -> str:
    """The kind of a device, as manifest.json names it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"the CPU ({threads} thread{'s' * (threads > 1)})"
