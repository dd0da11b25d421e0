"""The rules by which a form of an operator is refused, or chosen where nothing is asked for.

A rule gives a reason, or None where it does not hold. Those of attention: `llmkit.plan.attention_rules`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from llmkit.config.derive import rows_per_rank
from llmkit.config.schema import Config
from llmkit.config.shape import ModelShape
from llmkit.parallel.layout import Layout
from llmkit.plan.facts import DeviceFacts
from llmkit.precision import BYTES, Precision

WIDEST_NORM = 8192
"""Longest row of the Triton norms: the registers of a GPU's multiprocessor do not hold longer ones."""

FEW_LOGITS = 2**25
"""Bytes of a micro-batch's logits that a CPU's last cache holds: chunks gain nothing then."""


MEASURED = "measured"
"""How the reason of a choice begins that was made by timing the forms on this device."""


@dataclass(frozen=True)
class Choice:
    """The form of an operator, and why it was chosen."""

    operator: str
    form: str
    reason: str


@dataclass(frozen=True)
class Situation:
    """What the rules of forms look at.

    shape: None for a registered model, and where the settings contradict each other. device: None where it
    is not known yet; rules then judge by the rest. compiled: whether blocks and head are compiled. measured:
    the choice of an operator that was measured, or recorded, for this run.
    """

    config: Config
    shape: ModelShape | None
    layout: Layout
    precision: Precision
    device: DeviceFacts | None
    compiled: bool
    measured: Choice | None = None


Rule = Callable[[Situation], str | None]


def never(_: Situation) -> str | None:
    """The rule that holds nowhere."""
    return None


def always(_: Situation) -> str | None:
    """The rule of plain PyTorch, which serves everywhere."""
    return "plain PyTorch"


def triton_missing(s: Situation) -> str | None:
    """Why Triton kernels cannot run there."""
    if s.device is None or s.device.triton:
        return None
    if s.device.kind == "cpu":
        return "Triton kernels run on a GPU (on a CPU only in Triton's interpreter, TRITON_INTERPRET=1)"
    return "Triton is not installed, or not for this GPU"


def uncompiled_gpu(s: Situation) -> str | None:
    """Compiled blocks keep PyTorch's pointwise operators, which inductor fuses with what is around them."""
    return "not compiled" if s.device is not None and s.device.kind == "cuda" and not s.compiled else None


def rows_too_wide(s: Situation) -> str | None:
    """A program of the Triton norms holds a whole row in registers."""
    if s.shape is None or s.shape.hidden_size <= WIDEST_NORM:
        return None
    wide = f"the Triton norms take rows of at most {WIDEST_NORM:,}, not {s.shape.hidden_size:,}"
    return f"{wide}; set kernels.operators.norm to torch"


def optimizer_elsewhere(s: Situation) -> str | None:
    """Under DeepSpeed the optimizer is one that DeepSpeed knows."""
    if s.layout.engine == "deepspeed":
        return "DeepSpeed takes no other AdamW than PyTorch's; set kernels.operators.adamw to torch"
    return None


def on_gpu(s: Situation) -> str | None:
    """On a GPU logits are the largest of all tensors, so none are kept."""
    return "no logits are kept" if s.device is not None and s.device.kind == "cuda" else None


def many_logits(s: Situation) -> str | None:
    """Compiled on a CPU, few logits are computed faster all at once, and take no more memory."""
    return "few logits are kept" if few_compiled_logits(s) is None else None


def few_compiled_logits(s: Situation) -> str | None:
    """Compiled on a CPU, a micro-batch's logits fit the last cache."""
    if s.shape is None or s.device is None or s.device.kind != "cpu" or not s.compiled:
        return None
    micro, length = s.config.train.micro_batch_size, s.config.data.row_length
    rows = rows_per_rank(s.config, s.layout.data_parallel_size) if micro == "auto" else micro
    columns = s.shape.padded_vocab_size // s.layout.tensor_parallel_size
    size = s.layout.tokens_of(rows, length) * columns * BYTES[s.precision.compute]
    return "compiled on a CPU, few logits" if size <= FEW_LOGITS else None


def full(s: Situation) -> str:
    """Why all logits are computed at once: they are few, or no other form was chosen."""
    return few_compiled_logits(s) or "plain PyTorch"


def unmeasured(_: Situation) -> str | None:
    """PyTorch's fused AdamW is chosen until a GPU has shown that ours is faster."""
    return None


def linear_setting(s: Situation) -> tuple[str, str] | None:
    """The setting that decides the form of linear layers, and that form; None where none does."""
    if s.precision.linear == "fp8":
        return "train.precision", "fp8"
    form = s.config.train.lora.base_form
    return None if form is None else ("train.lora.quantize_base", form)


def only_by_setting(setting: str, form: str) -> Rule:
    """The rule that refuses a form of linear layers which another setting than its own name decides."""
    why = f"{setting} does not ask for it; set {setting}={form}, which chooses this form"
    return lambda s: None if linear_setting(s) == (setting, form) else why


def by_setting(s: Situation) -> str | None:
    """A form of linear layers that follows from a setting, which `only_by_setting` has compared."""
    found = linear_setting(s)
    return None if found is None else " ".join(found)


def not_by_setting(s: Situation) -> str | None:
    """Where a setting decides the form of linear layers it can be no other."""
    found = linear_setting(s)
    return None if found is None else f"{found[0]} is {found[1]}, and this form is not"


def no_avx512(s: Situation) -> str | None:
    """The kernel is compiled when it is first used. Without a device the precision may still be open."""
    if s.device is None:
        return None
    if s.precision.compute != "bf16":
        return f"this form is for bf16, the precision is {s.precision.name}"
    if s.device.avx512_bf16 and s.device.compiler_missing is None:
        return None
    return s.device.compiler_missing or "it needs a CPU with AVX-512 BF16, and without AMX"


def no_avx512_linear(s: Situation) -> str | None:
    """The same of the linear layer, which has forms that settings decide."""
    return not_by_setting(s) or no_avx512(s)


def compiled_bf16(s: Situation) -> str | None:
    """Compiled under the native engine, where the kernels for AVX-512 were measured to be faster."""
    known = s.device is not None and s.compiled and s.layout.engine == "native"
    return "bf16 on a CPU with AVX-512" if known else None
