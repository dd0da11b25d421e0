"""The peers' models, each as a function from tokens to the mean loss, and their training step.

Peers are trained in the usual way: fp32 weights, for bf16 under autocast, PyTorch's fused attention. A
library that is not installed, or does not work with the others, raises when its model is asked for.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from llmkit.batch import Batch
from llmkit.config.optimizer_section import Optimizer
from llmkit.config.shape import ModelShape

Step = Callable[[Sequence[Batch]], Tensor]
"""One whole training step over its micro-batches; the mean loss in nats per target, still on the device."""
Loss = Callable[[Batch], Tensor]
"""The mean loss of a micro-batch, to be differentiated."""


def transformers_model(shape: ModelShape) -> nn.Module:
    """transformers' GPT-2 or Llama of that shape in fp32, with the padded vocabulary."""
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


def litgpt_model(shape: ModelShape) -> nn.Module:
    """litgpt's model of that shape in fp32. It has rotary positions only, and one switch for all biases."""
    from litgpt import GPT, Config

    config = Config(
        n_layer=shape.num_hidden_layers,
        n_embd=shape.hidden_size,
        n_head=shape.num_attention_heads,
        n_query_groups=shape.num_key_value_heads,
        head_size=shape.head_dim,
        intermediate_size=shape.intermediate_size,
        block_size=shape.max_position_embeddings,
        vocab_size=shape.padded_vocab_size,
        padded_vocab_size=shape.padded_vocab_size,
        norm_class_name="LayerNorm" if shape.norm == "layernorm" else "RMSNorm",
        norm_eps=shape.norm_eps,
        mlp_class_name="GptNeoxMLP" if shape.mlp == "gelu" else "LLaMAMLP",
        gelu_approximate="tanh",
        bias=shape.mlp_bias,
        parallel_residual=False,
        rotary_percentage=1.0,
        rope_base=int(shape.rope_theta),
    )
    model = GPT(config)
    model.apply(model._init_weights)
    if shape.tie_word_embeddings:  # as litgpt's own training does
        model.transformer.wte.weight = model.lm_head.weight
    return model.train()


def transformers_loss(model: nn.Module, compiled: bool) -> Loss:
    """transformers shifts the labels itself."""
    forward: Any = torch.compile(model) if compiled else model
    return lambda batch: forward(input_ids=batch.tokens, labels=batch.tokens).loss


def litgpt_loss(model: nn.Module, compiled: bool) -> Loss:
    """litgpt's cross-entropy, without its chunks: they save memory, and would be launched one by one."""
    from litgpt.utils import chunked_cross_entropy

    def loss(tokens: Tensor, labels: Tensor) -> Tensor:
        return chunked_cross_entropy(model(tokens), labels, chunk_size=0)

    forward: Any = torch.compile(loss) if compiled else loss
    return lambda batch: forward(batch.tokens, batch.labels)


def liger_loss(model: nn.Module, device: torch.device) -> Loss:
    """transformers' Llama with all of Liger's kernels, its fused linear cross-entropy among them.

    Liger patches transformers' module for good; here that holds while this model computes only, so that
    another Llama of the same process stays what it was.
    """
    if device.type != "cuda":
        raise RuntimeError("Liger's kernels need a GPU")
    from liger_kernel.transformers import apply_liger_kernel_to_llama
    from transformers.models.llama import modeling_llama

    before = dict(vars(modeling_llama))
    apply_liger_kernel_to_llama(model=model)
    patches = {name: each for name, each in vars(modeling_llama).items() if before.get(name) is not each}
    vars(modeling_llama).update({name: before[name] for name in patches})
    forward: Any = model

    def loss(batch: Batch) -> Tensor:
        with patched(modeling_llama, patches):
            return forward(input_ids=batch.tokens, labels=batch.tokens).loss

    return loss


@contextmanager
def patched(module: ModuleType, values: dict[str, Any]) -> Iterator[None]:
    """Gives names of a module other values for a while."""
    names = vars(module)
    before = {name: names[name] for name in values}
    names.update(values)
    try:
        yield
    finally:
        names.update(before)


def training_step(
    model: nn.Module,
    loss: Loss,
    precision: str,
    device: torch.device,
    settings: Optimizer,
    clipping: float,
) -> Step:
    """The plain training loop's body; the micro-batches of a step are of equal size."""
    parameters = list(model.parameters())
    matrices, vectors = [p for p in parameters if p.dim() >= 2], [p for p in parameters if p.dim() < 2]
    optimizer = torch.optim.AdamW(
        [
            {"params": matrices, "weight_decay": settings.weight_decay},
            {"params": vectors, "weight_decay": 0.0},
        ],
        lr=settings.learning_rate,
        betas=settings.betas,
        eps=settings.eps,
        fused=True,
    )

    def step(micro_batches: Sequence[Batch]) -> Tensor:
        optimizer.zero_grad()
        losses = []
        for each in micro_batches:
            bf16 = torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else nullcontext()
            with bf16:
                mean = loss(each) / len(micro_batches)
            mean.backward()
            losses.append(mean.detach())
        nn.utils.clip_grad_norm_(parameters, clipping)
        optimizer.step()
        return torch.stack(losses).sum()

    return step
