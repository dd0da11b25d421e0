"""Checks that a run fits into memory and onto the disk before anything is built."""

from __future__ import annotations

import torch

from llmkit.checkpoint.read import folders
from llmkit.config.load import Loaded
from llmkit.config.memory import checkpoint_bytes, parameter_bytes, show_bytes
from llmkit.config.shape import ModelShape
from llmkit.cores import host_memory
from llmkit.errors import UserError
from llmkit.plan import Plan
from llmkit.run_folder import RunFolder

_SIZES = ("hidden_size", "num_hidden_layers", "intermediate_size", "vocab_size")


def require_memory(loaded: Loaded, plan: Plan, device: torch.device, local_size: int) -> None:
    """Raises UserError where the weights, gradients and optimizer state alone are more than there is.

    local_size: processes of this run on this host, which share its memory.
    """
    need = plan.state
    here = f"the {local_size} processes on this machine" if local_size > 1 else "this process"
    gradients = need.gradients if plan.layout.offload == "none" else 0
    if device.type == "cpu":
        _require(loaded, plan, (need.device + gradients) * local_size, host_memory(), here)
        return
    on_gpu = torch.cuda.mem_get_info(device)[1]
    _require(loaded, plan, need.device + gradients, on_gpu, "a process, on a GPU")
    _require(loaded, plan, need.host * local_size, host_memory(), here)


def _require(loaded: Loaded, plan: Plan, needed: int, there: int | None, who: str) -> None:
    if there is None or needed <= there:
        return
    names = _SIZES if isinstance(plan.model, ModelShape) else ("type",)
    sizes = ", ".join(loaded.settings.describe(f"model.{name}") for name in names)
    each = sum(parameter_bytes(plan.precision, plan.kept_tensors))
    trained = " trained" if loaded.config.train.lora.rank else ""
    raise UserError(
        f"a model of {plan.model.num_parameters:,} parameters does not fit into memory: weights, gradients "
        f"and optimizer state ({each:.4g} bytes a{trained} parameter in {plan.precision}, shared out as the "
        f"settings say) take at least {show_bytes(needed)} for {who}, and there is {show_bytes(there)}; make "
        f"it smaller ({sizes}), or share out more (parallel.zero_stage, parallel.tensor_parallel_size, "
        "parallel.offload, machines)"
    )


def require_disk(loaded: Loaded, plan: Plan, folder: RunFolder) -> None:
    """Raises RunFault unless the checkpoints fit onto the disk of the run folder.

    While a save is under way there is one more than is kept; those that are there need no more.
    """
    copies = max(1, loaded.config.checkpoint.keep_last + 1 - len(folders(folder.checkpoints)))
    folder.require_space(int(checkpoint_bytes(plan.kept_tensors) * plan.num_trained) * copies)
