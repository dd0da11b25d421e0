"""The combinations of layout, model and settings that must all train alike."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

from llmkit.config.operators import GENERATED
from llmkit.parallel.layout import usual_engine
from llmkit.parity.subjects import LENGTH
from llmkit.plan.operators import FORMS

FACTORS: dict[str, tuple[Any, ...]] = {
    "model": ("gpt2", "modern", "odd", "qk-norm"),
    "stage": (0, 1, 2, 3),
    "tensor": (1, 2, 4),
    "data": (1, 2),
    "sequence_parallel": (False, True),
    "accumulation": (1, 3),
    "activation_checkpointing": ("none", "selective", "full", "full/2"),
    "masked": (False, True),
    "precision": ("fp32", "bf16"),
    "offload": ("none", "cpu"),
    "optimizer": ("adamw", "muon"),
    "engine": ("auto", "deepspeed"),
}
"""Setting -> its values. full/2 = full recomputation of every second block; engine auto = llmkit's own up to
stage 1, DeepSpeed from stage 2 on. Of llmkit's own at stage 2: `SLICED`."""


@dataclass(frozen=True)
class Case:
    """One combination: `tensor` x `context` x `data` processes, experts over `expert` of the latter two; the
    rest as in the configuration.

    context_form: how attention is computed where several ranks share rows. length: of the rows. forms: of
    operators, as in "attention=matmul"; those of others are chosen by rule. compiled: by
    torch.compile; the single process that it is compared with is not. adapters: of all linear layers, which
    alone are trained. mlp_tile: not of the single process either.
    """

    model: str
    stage: int
    tensor: int
    data: int
    sequence_parallel: bool
    accumulation: int
    activation_checkpointing: str
    masked: bool
    precision: str
    offload: str
    optimizer: str = "adamw"
    engine: str = "auto"
    forms: str = ""
    compiled: bool = False
    adapters: bool = False
    context: int = 1
    context_form: str = "auto"
    length: int = LENGTH
    expert: int = 1
    mlp_tile: int = 0

    def __str__(self) -> str:
        """Short enough for a table: `modern Z3 tp2 dp2 sp acc3 selective masked bf16 offload`."""
        engine = self.engine
        if engine == "auto":
            engine = usual_engine(self.stage, self.offload, self.expert)
        native = engine == "native"
        parts = [
            self.model,
            "-".join(["native"] * native + [f"Z{self.stage}"] * (self.stage > 0)),
            f"tp{self.tensor}",
            f"dp{self.data}",
        ]
        parts += [f"cp{self.context}", self.context_form] * (self.context > 1)
        parts += [f"ep{self.expert}"] * (self.expert > 1)
        parts += [f"length {self.length}"] * (self.length != LENGTH)
        parts += ["sp"] * self.sequence_parallel + [f"acc{self.accumulation}"] * (self.accumulation > 1)
        parts += [self.activation_checkpointing] * (self.activation_checkpointing != "none") + [
            "masked"
        ] * self.masked
        parts += [self.precision] + ["offload"] * (self.offload != "none")
        parts += ["muon"] * (self.optimizer == "muon") + [self.forms] * bool(self.forms)
        parts += [f"tiles of {self.mlp_tile}"] * bool(self.mlp_tile)
        return " ".join(parts + ["compiled"] * self.compiled + ["lora"] * self.adapters)

    @property
    def world_size(self) -> int:
        return self.tensor * self.context * self.data

    @property
    def kernels(self) -> dict[str, Any]:
        """The case as the section `kernels` of a configuration."""
        operators = dict(each.split("=") for each in self.forms.split())
        return {"compile": self.compiled, "mlp_tile": self.mlp_tile, "operators": operators}

    @property
    def parallel(self) -> dict[str, Any]:
        """The case as the section `parallel` of a configuration."""
        activation_checkpointing, _, every = self.activation_checkpointing.partition("/")
        return {
            "world_size": self.world_size,
            "tensor_parallel_size": self.tensor,
            "context_parallel_size": self.context,
            "context_parallel_form": self.context_form,
            "expert_parallel_size": self.expert,
            "sequence_parallel": self.sequence_parallel,
            "zero_stage": self.stage,
            "engine": self.engine,
            "offload": self.offload,
            "activation_checkpointing": activation_checkpointing,
            "activation_checkpointing_every": int(every or 1),
        }

    @property
    def is_valid(self) -> bool:
        """Whether there is such a layout: ZeRO is tried where it cuts something."""
        if self.sequence_parallel and self.tensor == 1:
            return False
        if self.engine == "deepspeed" and self.stage != 1:
            return False
        if self.engine == "auto" and self.stage == 1 and self.offload == "cpu":
            return False  # DeepSpeed's
        return self.data == 2 if self.stage else self.offload == "none"


LARGE = [
    Case("large", stage, tensor, data, False, 1, "none", False, "fp32", "none")
    for stage, tensor, data in ((0, 2, 1), (1, 1, 2), (3, 1, 2))
]
"""Few, as each of their steps takes as long as a small model's ten."""

FORMED = [
    Case(model, stage, tensor, data, False, 1, "none", masked, "fp32", "none", forms=f"{operator}={name}")
    for operator, forms in FORMS.items()
    if operator != "linear"
    if len(names := [form.name for form in forms if form.name not in GENERATED and not form.timed]) > 1
    for name in names
    for model, stage, tensor, data, masked in (("modern", 0, 2, 1, False), ("gpt2", 1, 1, 2, True))
]
"""Each form in PyTorch of operators that have several, under tensor parallelism and under ZeRO. Those of
linear layers are each for another number type or processor; those that are timed, for bf16 on a GPU."""

AVX512 = [
    Case(
        model, stage, tensor, data, pieces, accumulation, recompute, False, "bf16", "none", optimizer,
        forms="linear=avx512 attention=avx512 head_loss=avx512 muon=avx512",
    )
    for model, stage, tensor, data, pieces, accumulation, recompute, optimizer in (
        ("modern", 0, 2, 1, False, 1, "none", "adamw"),
        ("gpt2", 0, 2, 1, True, 1, "none", "adamw"),
        ("gpt2", 1, 1, 2, False, 3, "full", "muon"),
    )
]  # fmt: skip
"""All kernels for CPUs with AVX-512 BF16 at once."""

COMPILED = [
    Case(model, stage, tensor, data, False, 1, recompute, masked, "fp32", "none", compiled=True)
    for model, stage, tensor, data, recompute, masked in (
        ("modern", 0, 1, 1, "none", False),
        ("gpt2", 0, 1, 1, "selective", True),
        ("modern", 0, 2, 1, "none", False),
        ("modern", 3, 1, 2, "full", False),
    )
]
"""Few, as torch.compile takes longer than all steps together."""

SETTINGS = [
    Case(model, stage, tensor, data, pieces, 3, recompute, masked, "fp32", "none", optimizer)
    for model, stage, tensor, data, pieces, recompute, masked, optimizer in (
        ("everything", 0, 2, 1, False, "none", True, "muon"),
        ("everything", 0, 2, 1, True, "selective", False, "adamw"),
        ("everything", 0, 2, 1, True, "full/2", True, "muon"),
        ("everything", 1, 1, 2, False, "full", True, "muon"),
        ("everything", 3, 1, 2, False, "selective", True, "muon"),
        ("everything", 0, 4, 1, False, "none", False, "adamw"),
        ("everything", 3, 2, 2, True, "none", True, "adamw"),
        ("olmo", 3, 2, 2, True, "selective", True, "muon"),
        ("gemma", 0, 2, 1, True, "full/2", True, "adamw"),
        ("experts", 0, 2, 1, True, "full", True, "adamw"),
        ("experts", 3, 2, 2, True, "full/2", True, "muon"),
        ("sigmoid-experts", 0, 2, 1, True, "selective", False, "muon"),
    )
]
"""The settings of recent small recipes, and of published families, all at once, under each way to share their
parameters."""

ALONE = [
    Case("modern", stage, 1, 1, False, 3, "none", False, precision, offload, engine="deepspeed")
    for stage, precision, offload in (
        (1, "bf16", "none"),
        (2, "fp32", "none"),
        (3, "bf16", "none"),
        (3, "fp32", "cpu"),
    )
]
"""DeepSpeed's stages on one process, so that they are tried on a GPU where there is only one."""

ADAPTERS = [
    Case(model, stage, tensor, data, pieces, 3, recompute, masked, precision, "none", optimizer, engine,
         adapters=True)
    for model, stage, tensor, data, pieces, recompute, masked, precision, optimizer, engine in (
        ("odd", 0, 2, 1, False, "none", False, "fp32", "muon", "auto"),
        ("gpt2", 0, 2, 1, True, "full", True, "fp32", "adamw", "auto"),
        ("modern", 0, 1, 2, False, "selective", False, "bf16", "adamw", "auto"),
        ("modern", 1, 1, 2, False, "full/2", False, "fp32", "muon", "auto"),
        ("gpt2", 1, 1, 2, False, "none", True, "bf16", "adamw", "deepspeed"),
        ("odd", 2, 1, 2, False, "none", False, "fp32", "adamw", "auto"),
        ("gpt2", 3, 1, 2, False, "full", False, "bf16", "adamw", "auto"),
        ("odd", 3, 2, 2, True, "selective", True, "fp32", "muon", "auto"),
    )
]  # fmt: skip
"""Low-rank adapters under each engine, stage and way to share a layer."""

SLICED = [
    Case(
        model, 2, tensor, data, pieces, 3, recompute, masked, precision, "none", optimizer, "native",
        adapters=adapters,
    )
    for model, tensor, data, pieces, recompute, masked, precision, optimizer, adapters in (
        ("modern", 1, 2, False, "selective", False, "bf16", "muon", False),
        ("gpt2", 1, 2, False, "none", True, "fp32", "adamw", False),
        ("modern", 1, 2, False, "none", False, "bf16", "adamw", False),
        ("odd", 2, 2, True, "full", False, "fp32", "muon", False),
        ("gpt2", 2, 2, False, "none", True, "bf16", "adamw", False),
        ("qk-norm", 2, 2, True, "full/2", False, "bf16", "muon", False),
        ("everything", 1, 2, False, "full", True, "fp32", "muon", False),
        ("odd", 1, 2, False, "none", False, "fp32", "adamw", True),
    )
]  # fmt: skip
"""Slices of gradients in llmkit's own engine; those with experts that are dealt out: `DEALT`."""

CONTEXT = [
    Case(
        model, stage, tensor, data, pieces, accumulation, recompute, masked, precision, offload, optimizer,
        context=context, context_form=form, length=length, **others,
    )
    for (
        model, stage, tensor, context, data, form, masked, length, pieces, accumulation, recompute, precision,
        offload, optimizer, others,
    ) in (
        ("gpt2", 0, 1, 2, 1, "ulysses", True, 37, False, 3, "none", "fp32", "none", "adamw", {}),
        ("modern", 1, 1, 2, 1, "ring", True, 37, False, 1, "selective", "fp32", "none", "muon", {}),
        ("everything", 1, 1, 2, 1, "ulysses", True, 37, False, 1, "full/2", "fp32", "none", "adamw", {}),
        ("experts", 3, 1, 2, 1, "ring", True, 37, False, 3, "full", "fp32", "none", "muon", {}),
        ("odd", 3, 2, 2, 1, "ulysses", False, 32, True, 1, "selective", "fp32", "none", "adamw", {}),
        ("gpt2", 1, 1, 2, 2, "ring", True, 37, False, 3, "none", "fp32", "none", "adamw", {}),
        ("gemma", 3, 1, 2, 1, "ring", True, 37, False, 1, "full", "fp32", "none", "adamw", {}),
        ("modern", 1, 1, 4, 1, "ulysses", True, 37, False, 1, "none", "fp32", "none", "muon", {}),
        ("modern", 0, 2, 2, 1, "ring", False, 32, True, 1, "none", "fp32", "none", "adamw", {}),
        ("experts", 0, 2, 2, 1, "ulysses", False, 32, True, 1, "none", "fp32", "none", "adamw", {}),
        ("odd", 1, 1, 2, 1, "ulysses", False, 32, False, 1, "none", "fp32", "none", "adamw", {}),
        ("everything", 0, 2, 2, 1, "ring", False, 36, True, 3, "selective", "fp32", "none", "muon", {}),
        ("modern", 0, 1, 2, 1, "ring", True, 37, False, 1, "none", "bf16", "none", "adamw", {}),
        ("gpt2", 1, 1, 2, 1, "ulysses", True, 37, False, 3, "none", "bf16", "none", "adamw",
         {"engine": "deepspeed"}),
        ("gemma", 0, 1, 2, 1, "ulysses", True, 37, False, 1, "none", "fp32", "none", "adamw", {}),
        ("modern", 0, 1, 2, 1, "ulysses", False, 32, False, 1, "none", "fp32", "none", "adamw",
         {"compiled": True}),
        ("modern", 1, 1, 2, 1, "ring", True, 37, False, 1, "none", "fp32", "none", "adamw",
         {"compiled": True}),
        ("odd", 1, 1, 2, 1, "ulysses", False, 32, False, 3, "none", "fp32", "none", "adamw",
         {"adapters": True}),
        ("qk-norm", 0, 1, 4, 1, "ring", True, 35, False, 3, "none", "fp32", "none", "muon", {}),
        ("olmo", 1, 1, 4, 1, "ulysses", True, 39, False, 1, "selective", "fp32", "none", "adamw", {}),
        ("gemma", 1, 2, 2, 1, "ulysses", True, 31, False, 1, "full/2", "fp32", "none", "muon", {}),
        ("gemma", 3, 2, 2, 1, "ring", True, 36, True, 1, "none", "fp32", "none", "adamw", {}),
        ("modern", 2, 1, 2, 2, "ulysses", True, 37, False, 1, "none", "fp32", "cpu", "adamw", {}),
        ("qk-norm", 3, 1, 2, 2, "ring", False, 33, False, 3, "full", "bf16", "none", "muon", {}),
        ("odd", 3, 2, 2, 2, "ring", True, 37, False, 1, "none", "fp32", "none", "muon", {}),
        ("qk-norm", 1, 2, 4, 1, "ulysses", True, 37, False, 3, "full", "fp32", "none", "adamw", {}),
        ("gpt2", 3, 1, 2, 1, "ulysses", True, 37, False, 3, "full", "fp32", "none", "adamw", {"mlp_tile": 5}),
        ("gemma", 3, 2, 2, 1, "ring", False, 36, True, 1, "none", "fp32", "none", "muon", {"mlp_tile": 6}),
    )
]  # fmt: skip
"""Rows that several ranks share, by each form, under tensor parallelism and each ZeRO stage, with documents,
windows, fewer key and value heads than ranks, and lengths that the ranks do not divide."""

DEALT = [
    Case(
        model, stage, tensor, data, pieces, accumulation, recompute, masked, precision, "none", optimizer,
        context=context, context_form=form, expert=expert, **others,
    )
    for (
        model, stage, tensor, context, data, expert, form, masked, pieces, accumulation, recompute, precision,
        optimizer, others,
    ) in (
        ("one-expert", 0, 1, 1, 2, 2, "auto", True, False, 3, "full", "fp32", "adamw", {}),
        ("two-experts", 2, 2, 1, 2, 2, "auto", False, True, 3, "selective", "fp32", "muon", {}),
        ("one-expert", 1, 1, 2, 2, 4, "ring", True, False, 3, "none", "fp32", "muon", {"length": 37}),
        ("two-experts", 1, 1, 2, 2, 2, "ulysses", True, False, 1, "full/2", "fp32", "adamw", {}),
        ("two-experts", 0, 1, 2, 2, 4, "ulysses", False, False, 3, "none", "fp32", "adamw", {}),
        ("one-expert", 1, 2, 1, 2, 2, "auto", True, True, 3, "full", "fp32", "adamw", {}),
        ("one-expert", 0, 2, 1, 2, 2, "auto", False, False, 1, "selective", "fp32", "muon", {}),
        ("two-experts", 0, 2, 2, 1, 2, "ring", True, False, 1, "none", "fp32", "adamw", {}),
        ("one-expert", 1, 1, 1, 2, 2, "auto", False, False, 1, "selective", "fp32", "muon", {}),
        ("two-experts", 0, 1, 1, 2, 2, "auto", True, False, 1, "none", "fp32", "muon", {}),
        ("two-experts", 0, 1, 1, 2, 2, "auto", True, False, 3, "full", "fp32", "adamw", {}),
        ("sigmoid-experts", 1, 1, 1, 2, 2, "auto", True, False, 1, "selective", "fp32", "muon", {}),
        ("two-experts", 1, 1, 1, 2, 2, "auto", False, False, 1, "none", "fp32", "adamw", {"adapters": True}),
        ("one-expert", 1, 1, 1, 2, 2, "auto", True, False, 1, "full", "fp32", "adamw", {"compiled": True}),
        ("two-experts", 1, 2, 2, 2, 4, "ulysses", True, False, 1, "full", "fp32", "muon", {}),
        ("all-experts", 0, 1, 1, 2, 2, "auto", True, False, 3, "none", "bf16", "adamw", {}),
        ("all-experts", 1, 2, 1, 2, 2, "auto", True, True, 1, "full", "bf16", "muon", {}),
        ("two-experts", 1, 2, 1, 2, 2, "auto", False, True, 1, "selective", "fp32", "muon", {}),
        ("one-expert", 2, 1, 1, 2, 2, "auto", True, False, 3, "none", "fp32", "adamw", {}),
        ("two-experts", 2, 1, 2, 2, 2, "ring", True, False, 3, "full", "fp32", "adamw", {"length": 37}),
        ("all-experts", 2, 1, 1, 2, 2, "auto", True, False, 3, "none", "bf16", "adamw", {}),
    )
]  # fmt: skip
"""Experts that are dealt out, over ranks with other rows and with other tokens of them. In bf16 with all
experts for each token alone: else some tokens choose others by rounding, and gradients differ by so much that
a mistake would not show (docs/parallelism.md)."""

FURTHER = LARGE + FORMED + SETTINGS + ALONE + AVX512 + COMPILED + ADAPTERS + SLICED + CONTEXT + DEALT


def all_cases() -> Iterator[Case]:
    """Every valid combination; of those with the large model only `LARGE` is ever tried."""
    for values in product(*FACTORS.values()):
        case = Case(*values)
        if case.is_valid:
            yield case
