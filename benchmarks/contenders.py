"""llmkit and its peers as training steps over the same batches.

The peers (`benchmarks/peers.py`) are the transformers library's GPT-2 and Llama, the latter also with
Liger's kernels, and litgpt's model, all with random weights. Batches, clipping, AdamW and its parameter
groups are the same for all.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks import peers
from benchmarks.peers import Step
from benchmarks.workloads import Workload
from llmkit.batch import Batch
from llmkit.config.optimizer_section import Optimizer
from llmkit.config.shape import ModelShape
from llmkit.cores import keep_freed_memory
from llmkit.kernels.compiler import compiler_missing
from llmkit.parallel.mesh import Mesh

ON_CPU = ("llmkit", "gpt2", "gpt2-compiled", "llama", "llama-compiled", "litgpt", "litgpt-compiled")
ON_GPU = (*ON_CPU, "llama-liger")
NAMES = ON_GPU
OPTIMIZER = Optimizer(name="adamw", learning_rate=3e-4)
"""For all contenders and shapes, the demo's too: what is compared is the model's arithmetic."""
CLIPPING = 1.0
ALIGNMENT = 64
"""A peer's MLP width is a multiple of this, as fast matrix products want it."""

STYLES: dict[str, dict[str, Any]] = {
    "gpt2": {"mlp": "gelu", "norm": "layernorm", "position_embedding": "learned",
             "attention_bias": True, "mlp_bias": True},
    "llama": {"mlp": "swiglu", "norm": "rmsnorm", "position_embedding": "rope",
              "attention_bias": False, "mlp_bias": False},
}  # fmt: skip


def contender_shape(name: str, shape: ModelShape) -> ModelShape:
    """The model that contender `name` trains in the place of llmkit's `shape`.

    llmkit: the shape itself. A peer whose architecture it is: the same, without what the peer cannot
    do (QK-norm, a window; litgpt: learned positions). The other peer: the same depth, width, heads and
    vocabulary, and an MLP that makes its blocks' matrices as large, to within `ALIGNMENT` columns.
    """
    if name == "llmkit":
        return shape
    style = name.partition("-")[0]
    if style == "litgpt":
        without = {"qk_norm": False, "sliding_window": None, "position_embedding": "rope"}
        return dataclasses.replace(shape, **without, attention_bias=shape.mlp_bias)
    peer = dataclasses.replace(shape, **STYLES[style], qk_norm=False, sliding_window=None)
    if style == "gpt2":
        peer = dataclasses.replace(peer, num_key_value_heads=shape.num_attention_heads)
    if peer.mlp == shape.mlp:
        return peer
    left = _attention_matrices(shape) + _mlp_columns(shape) * shape.intermediate_size
    left -= _attention_matrices(peer)
    width = max(1, round(left / _mlp_columns(peer) / ALIGNMENT)) * ALIGNMENT
    return dataclasses.replace(peer, intermediate_size=width)


def build(
    name: str,
    workload: Workload,
    precision: str,
    device: torch.device,
    note: Callable[[str], None],
    mesh: Mesh | None = None,
) -> Step:
    """Contender `name`, with its model and optimizer on `device`; whatever goes wrong is raised.

    mesh: of one process, for llmkit's engines that need a process group.
    """
    if device.type == "cpu":
        keep_freed_memory()  # of the whole process, as in training; so the peers have it too
    if name == "llmkit":
        return _build_llmkit(workload, precision, device, note, mesh or Mesh())
    compiled = name.endswith("-compiled")
    missing = compiler_missing(device) if compiled else None
    if missing:
        raise RuntimeError(f"torch.compile cannot work here: {missing}")
    torch.manual_seed(0)
    make = peers.litgpt_model if name.startswith("litgpt") else peers.transformers_model
    with device:
        model = make(contender_shape(name, workload.shape))
    if name.startswith("litgpt"):
        loss = peers.litgpt_loss(model, compiled)
    elif name.endswith("-liger"):
        loss = peers.liger_loss(model, device)
    else:
        loss = peers.transformers_loss(model, compiled)
    return peers.training_step(model, loss, precision, device, OPTIMIZER, CLIPPING)


def _build_llmkit(
    workload: Workload, precision: str, device: torch.device, note: Callable[[str], None], mesh: Mesh
) -> Step:
    """The model and engine as `llmkit train` builds them."""
    from llmkit.config.load import Loaded
    from llmkit.device import device_facts
    from llmkit.engine.build import build_engine
    from llmkit.plan import Known, resolve_plan

    update = {
        "gradient_clipping": CLIPPING, "precision": precision, "micro_batch_size": workload.micro_rows
    }  # fmt: skip
    train = workload.config.train.model_copy(update=update)
    config = workload.config.model_copy(update={"optimizer": OPTIMIZER, "train": train})
    facts = device_facts(device, compiled=config.kernels.compile is not False)
    known = Known(world_size=1, tokenizer_size=workload.shape.vocab_size, device=facts)
    plan = resolve_plan(Loaded.of(config), known)
    for line in plan.kernels.notes:
        note(line)
    engine = build_engine(plan, mesh, device=device, note=note)
    targets = workload.rows * (workload.length - 1)

    def step(micro_batches: Sequence[Batch]) -> Tensor:
        return engine.train_step(micro_batches, targets).loss_sum / targets

    return step


def _attention_matrices(shape: ModelShape) -> int:
    """Weights of one block's attention matrices."""
    return 2 * shape.hidden_size * shape.head_dim * (shape.num_attention_heads + shape.num_key_value_heads)


def _mlp_columns(shape: ModelShape) -> int:
    """Weights of one block's MLP for each unit of its inner width."""
    return (3 if shape.mlp == "swiglu" else 2) * shape.hidden_size
