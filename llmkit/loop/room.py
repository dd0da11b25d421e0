"""Checks that a run fits into memory and onto the disk before anything is built."""

from __future__ import annotations

import shutil

import torch

from llmkit.checkpoint.keeping import step_of
from llmkit.checkpoint.read import folders
from llmkit.checkpoint.rule import count_for_good, is_kept
from llmkit.config.load import Loaded
from llmkit.config.memory import parameter_bytes, show_bytes
from llmkit.config.shape import ModelShape
from llmkit.cores import host_memory
from llmkit.plan import Plan
from llmkit.plan.fitting import should_fit
from llmkit.plan.memory import memory
from llmkit.run_folder import RunFolder

_SIZES = ("hidden_size", "num_hidden_layers", "intermediate_size", "vocab_size")


ANYWAY = "--anyway starts all the same"


def memory_refusal(loaded: Loaded, plan: Plan, device: torch.device, local_size: int) -> str | None:
    """Why the run cannot fit into memory, by what a step takes at least; None where it may.

    That is the state, and what blocks keep for the backward pass. local_size: processes of this run on this
    host, which share its memory.
    """
    need, host = memory(plan), host_memory()
    here = f"the {local_size} processes on this machine" if local_size > 1 else "this process"
    if device.type == "cpu":
        state = _state_refusal(loaded, plan, need.state.total * local_size, host, here)
        each = None if host is None else host // local_size
        return state or _step_refusal(loaded, plan, need.least + need.state.host, each, on_gpu=False)
    on_gpu = torch.cuda.mem_get_info(device)[1]
    return (
        _state_refusal(loaded, plan, need.state.device, on_gpu, "a process, on a GPU")
        or _state_refusal(loaded, plan, need.state.host * local_size, host, here)
        or _step_refusal(loaded, plan, need.least, on_gpu, on_gpu=True)
    )


def memory_warning(plan: Plan, device: torch.device, local_size: int) -> str | None:
    """What is said where a step needs more than there is by estimate, though maybe less in truth."""
    on_gpu, need = device.type == "cuda", memory(plan)
    there = torch.cuda.mem_get_info(device)[1] if on_gpu else host_memory()
    each = there if on_gpu or there is None else there // local_size
    if each is None or need.on_device + need.state.host * (not on_gpu) <= each:
        return None
    return (
        f"memory may not do: by estimate a step needs {show_bytes(need.on_device)} a process ({need}), and "
        f"there is {show_bytes(each)}. {should_fit(plan, each, on_gpu)}"
    )


def _step_refusal(loaded: Loaded, plan: Plan, least: int, there: int | None, *, on_gpu: bool) -> str | None:
    if there is None or least <= there:
        return None
    origin = loaded.origins.get("train.micro_batch_size", "default")
    return (
        f"a step does not fit into memory: train.micro_batch_size {plan.micro_batch_size} ({origin}) with "
        f"{loaded.settings.describe('data.sequence_length')} takes at least {show_bytes(least)} a process, "
        f"and there is {show_bytes(there)}. {should_fit(plan, there, on_gpu)}; {ANYWAY}"
    )


def _state_refusal(loaded: Loaded, plan: Plan, needed: int, there: int | None, who: str) -> str | None:
    if there is None or needed <= there:
        return None
    names = _SIZES if isinstance(plan.model, ModelShape) else ("type",)
    sizes = ", ".join(loaded.settings.describe(f"model.{name}") for name in names)
    each = sum(parameter_bytes(plan.precision, plan.kept_tensors))
    trained = " trained" if loaded.config.train.lora.rank else ""
    return (
        f"a model of {plan.model.num_parameters:,} parameters does not fit into memory: weights, gradients "
        f"and optimizer state ({each:.4g} bytes a{trained} parameter in {plan.precision}, shared out as the "
        f"settings say) take at least {show_bytes(needed)} for {who}, and there is {show_bytes(there)}; make "
        f"it smaller ({sizes}), or share out more (parallel.zero_stage, parallel.tensor_parallel_size, "
        f"parallel.offload, machines); {ANYWAY}"
    )


def require_disk(loaded: Loaded, plan: Plan, folder: RunFolder) -> None:
    """Raises RunFault unless the newest checkpoints, and the best one, fit onto the disk of the run folder.

    While a save is under way there is one more than is kept; those that are there need no more.
    """
    kept = loaded.config.checkpoint.keep_last + loaded.config.checkpoint.keep_best
    folder.require_space(plan.checkpoint_bytes * max(1, kept + 1 - len(folders(folder.checkpoints))))


def disk_warning(loaded: Loaded, plan: Plan, folder: RunFolder, step: int) -> str | None:
    """What is said where the checkpoints that `checkpoint.keep_every` keeps will fill the disk before the run
    ends; None where they will not, or its last step is not known. step: that it goes on from.

    It is no refusal: room may be made meanwhile, and a run that is half done has to go on.
    """
    checkpoint, train = loaded.config.checkpoint, loaded.config.train
    if not checkpoint.keep_every or train.max_steps is None:
        return None
    there = folders(folder.checkpoints)
    for_good = sum(is_kept(step_of(path), checkpoint.keep_every, None) for path in there)
    for_good += count_for_good(checkpoint, step, max(step, train.max_steps))
    count = for_good + checkpoint.keep_last + checkpoint.keep_best + 1 - len(there)
    needed, free = plan.checkpoint_bytes * count, shutil.disk_usage(folder.path).free
    if needed <= free:
        return None
    return (
        f"the disk of {folder.path.absolute()} will be full before step {train.max_steps:,}: {count:,} more "
        f"checkpoints of {show_bytes(plan.checkpoint_bytes)} need {show_bytes(needed)}, free are "
        f"{show_bytes(free)}; make room meanwhile, or raise "
        f"{loaded.settings.describe('checkpoint.keep_every')}"
    )
