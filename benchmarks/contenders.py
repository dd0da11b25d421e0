"""llmkit and its peers as training steps over the same batches.

The peers are the transformers library's GPT-2 and Llama with random weights, trained in the usual way:
fp32 weights, for bf16 under autocast, PyTorch's fused attention, labels given to the model. Batches,
clipping, AdamW and its parameter groups are the same for all.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.workloads import Workload
from llmkit.batch import Batch
from llmkit.config.schema import Optimizer
from llmkit.config.shape import ModelShape
from llmkit.kernels.compiler import compiler_missing

NAMES = ("llmkit", "gpt2", "gpt2-compiled", "llama", "llama-compiled")
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

Step = Callable[[Batch], Tensor]
"""One whole training step; returns the mean loss in nats per target, still on the device."""


def contender_shape(name: str, shape: ModelShape) -> ModelShape:
    """The model that contender `name` trains in the place of llmkit's `shape`.

    llmkit: the shape itself. A peer whose architecture it is: the same, without what the peer cannot
    do (QK-norm, a window). The other peer: the same depth, width, heads and vocabulary, and an MLP
    that makes its blocks' matrices as large, to within `ALIGNMENT` columns.
    """
    if name == "llmkit":
        return shape
    style = name.removesuffix("-compiled")
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
    name: str, workload: Workload, precision: str, device: torch.device, note: Callable[[str], None]
) -> Step:
    """Contender `name`, with its model and optimizer on `device`; whatever goes wrong is raised."""
    if name == "llmkit":
        return _build_llmkit(workload, precision, device, note)
    compiled = name.endswith("-compiled")
    missing = compiler_missing(device) if compiled else None
    if missing:
        raise RuntimeError(f"torch.compile cannot work here: {missing}")
    torch.manual_seed(0)
    with device:
        model = _transformers_model(contender_shape(name, workload.shape))
    return _peer_step(model, compiled, precision, device)


def _build_llmkit(
    workload: Workload, precision: str, device: torch.device, note: Callable[[str], None]
) -> Step:
    """The model and engine as `llmkit train` builds them."""
    from llmkit.config.load import Loaded
    from llmkit.device import device_facts
    from llmkit.engine.build import build_engine
    from llmkit.parallel.mesh import Mesh
    from llmkit.plan import Known, resolve_plan

    update = {"gradient_clipping": CLIPPING, "precision": precision, "micro_batch_size": workload.rows}
    train = workload.config.train.model_copy(update=update)
    config = workload.config.model_copy(update={"optimizer": OPTIMIZER, "train": train})
    facts = device_facts(device, compiled=config.kernels.compile is not False)
    known = Known(world_size=1, tokenizer_size=workload.shape.vocab_size, device=facts)
    plan = resolve_plan(Loaded.of(config), known)
    for line in plan.kernels.notes:
        note(line)
    engine = build_engine(plan, Mesh(), device=device, note=note)
    targets = workload.rows * (workload.length - 1)

    def step(batch: Batch) -> Tensor:
        return engine.train_step([batch], targets, OPTIMIZER.learning_rate).loss_sum / targets

    return step


def _transformers_model(shape: ModelShape) -> nn.Module:
    """The peer's model of that shape in fp32, with the padded vocabulary."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig

    config: Any
    settings: dict[str, Any] = {
        "vocab_size": shape.padded_vocab_size,
        "tie_word_embeddings": shape.tie_word_embeddings,
        "initializer_range": shape.initializer_range,
        "use_cache": False,
        "bos_token_id": 0,
        "eos_token_id": 0,
    }
    if shape.mlp == "gelu":
        config = GPT2Config(
            n_layer=shape.num_hidden_layers,
            n_embd=shape.hidden_size,
            n_head=shape.num_attention_heads,
            n_inner=shape.intermediate_size,
            n_positions=shape.max_position_embeddings,
            layer_norm_epsilon=shape.norm_eps,
            resid_pdrop=shape.hidden_dropout,
            embd_pdrop=shape.hidden_dropout,
            attn_pdrop=shape.attention_dropout,
            **settings,
        )
    else:
        config = LlamaConfig(
            num_hidden_layers=shape.num_hidden_layers,
            hidden_size=shape.hidden_size,
            num_attention_heads=shape.num_attention_heads,
            num_key_value_heads=shape.num_key_value_heads,
            head_dim=shape.head_dim,
            intermediate_size=shape.intermediate_size,
            max_position_embeddings=shape.max_position_embeddings,
            rms_norm_eps=shape.norm_eps,
            attention_dropout=shape.attention_dropout,
            **settings,
        )
    from_config: Any = AutoModelForCausalLM.from_config
    model: Any = from_config(config, attn_implementation="sdpa").float().train()
    model.loss_type = "ForCausalLM"  # its default too, but unset GPT-2 warns, which splits the compiled graph
    return model


def _peer_step(model: nn.Module, compiled: bool, precision: str, device: torch.device) -> Step:
    """The plain training loop's body around a transformers model."""
    parameters = list(model.parameters())
    matrices, vectors = [p for p in parameters if p.dim() >= 2], [p for p in parameters if p.dim() < 2]
    optimizer = torch.optim.AdamW(
        [
            {"params": matrices, "weight_decay": OPTIMIZER.weight_decay},
            {"params": vectors, "weight_decay": 0.0},
        ],
        lr=OPTIMIZER.learning_rate,
        betas=OPTIMIZER.betas,
        eps=OPTIMIZER.eps,
        fused=True,
    )
    forward = torch.compile(model) if compiled else model

    def step(batch: Batch) -> Tensor:
        optimizer.zero_grad()
        bf16 = torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else nullcontext()
        with bf16:
            loss: Any = forward(input_ids=batch.tokens, labels=batch.tokens).loss  # it shifts them itself
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, CLIPPING)
        optimizer.step()
        return loss.detach()

    return step


def _attention_matrices(shape: ModelShape) -> int:
    """Weights of one block's attention matrices."""
    return 2 * shape.hidden_size * shape.head_dim * (shape.num_attention_heads + shape.num_key_value_heads)


def _mlp_columns(shape: ModelShape) -> int:
    """Weights of one block's MLP for each unit of its inner width."""
    return (3 if shape.mlp == "swiglu" else 2) * shape.hidden_size
