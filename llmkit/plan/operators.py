"""Which form of each operator a run computes with, and why; a pure choice, which imports no torch.

The functions behind the names are in `llmkit.kernels.operators`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from llmkit.config.derive import rows_per_rank
from llmkit.config.load import Loaded
from llmkit.config.mistakes import Mistake
from llmkit.config.operators import FLASH_PACKAGES, FUNCTIONS, GENERATED
from llmkit.config.schema import Config
from llmkit.config.shape import ModelShape
from llmkit.parallel.layout import Layout
from llmkit.plan.facts import DeviceFacts
from llmkit.precision import BYTES, Precision
from llmkit.registry import find

WIDEST_NORM = 8192
"""Longest row of the Triton norms: the registers of a GPU's multiprocessor do not hold longer ones."""

FEW_LOGITS = 2**25
"""Bytes of a micro-batch's logits that a CPU's last cache holds: chunks gain nothing then."""


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


def _never(_: Situation) -> str | None:
    return None


def _always(_: Situation) -> str | None:
    return "plain PyTorch"


@dataclass(frozen=True)
class Form:
    """One way to compute an operator.

    refuses: why it cannot be used in a situation; None where it can. best: why it is chosen where nothing is
    asked for; None where it is not. timed: whether it is one of those of which, where several can serve, only
    measuring tells the fastest.
    """

    name: str
    refuses: Rule = _never
    best: Rule = _always
    timed: bool = False


def triton_missing(s: Situation) -> str | None:
    """Why Triton kernels cannot run there."""
    if s.device is None or s.device.triton:
        return None
    if s.device.kind == "cpu":
        return "Triton kernels run on a GPU (on a CPU only in Triton's interpreter, TRITON_INTERPRET=1)"
    return "Triton is not installed, or not for this GPU"


def _uncompiled_gpu(s: Situation) -> str | None:
    """Compiled blocks keep PyTorch's pointwise operators, which inductor fuses with what is around them."""
    return "not compiled" if s.device is not None and s.device.kind == "cuda" and not s.compiled else None


def triton_form(refuses: Rule = _never, best: Rule = _uncompiled_gpu) -> Form:
    """The Triton form of a pointwise operator."""
    return Form("triton", lambda s: triton_missing(s) or refuses(s), best)


def _compiled_on_cpu(s: Situation) -> str | None:
    """Selective recomputation would keep the scores of blocks."""
    on_cpu = s.device is not None and s.device.kind == "cpu"
    selective = s.layout.activation_checkpointing == "selective"
    return "compiled on a CPU" if on_cpu and s.compiled and not selective else None


def _varlen_refuses(s: Situation) -> str | None:
    """What flash attention of variable length cannot do, or a loop over documents on a CPU."""
    if s.shape is not None and s.shape.attention_dropout > 0.0:
        return "attention of variable length has no dropout"
    if s.shape is not None and s.shape.attn_logit_softcapping is not None:
        return "attention of variable length has no soft cap"
    if s.device is None:
        return None
    if s.device.kind == "cpu":
        return "on a CPU it is a loop over documents, which cannot be compiled" if s.compiled else None
    if s.device.capability is None or s.device.capability < (8, 0):
        return "flash attention of variable length needs an NVIDIA GPU of compute capability 8.0 or newer"
    if s.precision.compute != "bf16":
        return f"flash attention of variable length computes in bf16, not {s.precision.compute}"
    if s.shape is not None and (s.shape.head_dim % 8 or s.shape.head_dim > 256):
        return f"flash attention of variable length takes heads of 8, 16, ... 256, not {s.shape.head_dim}"
    if not s.device.varlen:
        return "this PyTorch has no attention of variable length with windows (2.11 and newer have it)"
    return None


def _documents_or_window(s: Situation) -> str | None:
    if s.config.data.document_masks:
        return "documents are masked"
    on_gpu = s.device is not None and s.device.kind == "cuda"
    return "windows" if on_gpu and _windowed(s) else None


def _masked(s: Situation) -> bool:
    """Whether attention is more than causal; what fused attention then needs is a mask."""
    return s.config.data.document_masks or _windowed(s)


def _windowed(s: Situation) -> bool:
    """Whether a position cannot see the whole row before it."""
    window = None if s.shape is None else s.shape.sliding_window
    return window is not None and window < s.config.data.sequence_length


def _backend_refuses(s: Situation, kernel: str, widest: int) -> str | None:
    """What no fused kernel of PyTorch for a GPU can do, but for the memory-efficient one."""
    if s.shape is not None and s.shape.attn_logit_softcapping is not None:
        return f"{kernel} has no soft cap"
    if s.device is None:
        return None
    if s.device.kind != "cuda":
        return f"{kernel} needs a GPU"
    if s.device.capability is None or s.device.capability < (8, 0):
        return f"{kernel} needs an NVIDIA GPU of compute capability 8.0 or newer"
    if s.precision.compute != "bf16":
        return f"{kernel} computes in bf16, not {s.precision.compute}"
    if _masked(s):
        return f"{kernel} is for causal attention without masks of documents or windows"
    if s.shape is not None and (s.shape.head_dim % 8 or s.shape.head_dim > widest):
        return f"{kernel} takes heads of 8, 16, ... {widest}, not {s.shape.head_dim}"
    return None


def _cudnn_refuses(s: Situation) -> str | None:
    return _backend_refuses(s, "cuDNN's attention", 128)


def _flash_refuses(s: Situation) -> str | None:
    return _backend_refuses(s, "flash attention", 256)


def _package_refuses(s: Situation, form: str, generations: tuple[int, ...], widest: int) -> str | None:
    """What flash attention by another package cannot do."""
    kernel = f"flash attention {form[-1]}"
    if s.shape is not None and s.shape.attention_dropout > 0.0:
        return f"{kernel} has no dropout"
    if (refusal := _backend_refuses(s, kernel, widest)) is not None or s.device is None:
        return refusal
    if s.device.capability is None or s.device.capability[0] not in generations:
        shown = " or ".join(f"{each}.x" for each in generations)
        return f"{kernel} needs an NVIDIA GPU of compute capability {shown}"
    if form not in s.device.flash:
        implementation, package, file = FLASH_PACKAGES[form]
        return (
            f"{kernel} is not installed ({f'{package}/{file}' if file else package}), or this PyTorch cannot "
            f'call it (2.13 can: activate_flash_attention_impl("{implementation}"))'
        )
    return None


def _efficient_refuses(s: Situation) -> str | None:
    """Of groups of heads it would need copies of keys and values."""
    kernel = "memory-efficient attention"
    if s.shape is not None and s.shape.num_key_value_heads != s.shape.num_attention_heads:
        return f"{kernel} takes as many key and value heads as query heads"
    return _backend_refuses(s, kernel, 256)


def _rows_too_wide(s: Situation) -> str | None:
    """A program of the Triton norms holds a whole row in registers."""
    if s.shape is None or s.shape.hidden_size <= WIDEST_NORM:
        return None
    wide = f"the Triton norms take rows of at most {WIDEST_NORM:,}, not {s.shape.hidden_size:,}"
    return f"{wide}; set kernels.operators.norm to torch"


def _optimizer_elsewhere(s: Situation) -> str | None:
    if s.layout.engine == "deepspeed":
        return "DeepSpeed takes no other AdamW than PyTorch's; set kernels.operators.adamw to torch"
    return None


def _on_gpu(s: Situation) -> str | None:
    return "no logits are kept" if s.device is not None and s.device.kind == "cuda" else None


def _many_logits(s: Situation) -> str | None:
    """Compiled on a CPU, few logits are computed faster all at once, and take no more memory."""
    return "few logits are kept" if _few_compiled_logits(s) is None else None


def _few_compiled_logits(s: Situation) -> str | None:
    if s.shape is None or s.device is None or s.device.kind != "cpu" or not s.compiled:
        return None
    micro, length = s.config.train.micro_batch_size, s.config.data.sequence_length
    rows = rows_per_rank(s.config, s.layout.data_parallel_size) if micro == "auto" else micro
    columns = s.shape.padded_vocab_size // s.layout.tensor_parallel_size
    size = rows * length * columns * BYTES[s.precision.compute]
    return "compiled on a CPU, few logits" if size <= FEW_LOGITS else None


def _full(s: Situation) -> str:
    return _few_compiled_logits(s) or "plain PyTorch"


def _unmeasured(_: Situation) -> str | None:
    """PyTorch's fused AdamW is chosen until a GPU has shown that ours is faster."""
    return None


def _fp8(s: Situation) -> str | None:
    return "train.precision fp8" if s.precision.linear == "fp8" else None


def _not_fp8(s: Situation) -> str | None:
    why = "the precision is not fp8; set train.precision=fp8, which chooses this form"
    return None if s.precision.linear == "fp8" else why


def _is_fp8(s: Situation) -> str | None:
    return "train.precision is fp8, and this form is not" if s.precision.linear == "fp8" else None


def _no_avx512(s: Situation) -> str | None:
    """The kernel is compiled when it is first used. Without a device the precision may still be open."""
    if s.device is None:
        return None
    if s.precision.compute != "bf16":
        return f"this form is for bf16, the precision is {s.precision.name}"
    if s.device.avx512_bf16 and s.device.compiler_missing is None:
        return None
    return s.device.compiler_missing or "it needs a CPU with AVX-512 BF16, and without AMX"


def _no_avx512_linear(s: Situation) -> str | None:
    return _is_fp8(s) or _no_avx512(s)


def _plain_causal(s: Situation) -> str | None:
    """Where its kernel is used in every layer: what else is asked of attention it leaves to `blocks`."""
    if s.shape is None or s.shape.attention_dropout or s.shape.attn_logit_softcapping:
        return None
    selective = s.layout.activation_checkpointing == "selective"
    return None if selective or _masked(s) else _compiled_bf16(s)


def _compiled_bf16(s: Situation) -> str | None:
    known = s.device is not None and s.compiled and s.layout.engine == "native"
    return "bf16 on a CPU with AVX-512" if known else None


TORCH = Form("torch")
FORMS: Mapping[str, tuple[Form, ...]] = {
    "linear": (
        Form("fp8", _not_fp8, _fp8),
        Form("avx512", _no_avx512_linear, _compiled_bf16),
        Form("torch", _is_fp8),
    ),
    "norm": (triton_form(_rows_too_wide), TORCH),
    "rotation": (triton_form(), TORCH),
    "activation": (triton_form(), TORCH),
    "dropout_add": (triton_form(), TORCH),
    "attention": (
        Form("avx512", _no_avx512, _plain_causal),
        Form("varlen", _varlen_refuses, _documents_or_window),
        Form("blocks", best=_compiled_on_cpu),
        Form("matmul", best=_never),
        Form("cudnn", _cudnn_refuses, _never, timed=True),
        Form("flash", _flash_refuses, _never, timed=True),
        Form("flash3", lambda s: _package_refuses(s, "flash3", (9,), 256), _never, timed=True),
        Form("flash4", lambda s: _package_refuses(s, "flash4", (9, 10), 128), _never, timed=True),
        Form("efficient", _efficient_refuses, _never, timed=True),
        Form("sdpa"),
    ),
    "head_loss": (
        triton_form(best=_on_gpu),
        Form("avx512", _no_avx512, _compiled_bf16),
        Form("chunked", best=_many_logits),
        Form("full", best=_full),
    ),
    "gradient_norm": (TORCH,),
    "adamw": (triton_form(_optimizer_elsewhere, best=_unmeasured), TORCH),
    "muon": (Form("avx512", _no_avx512, _compiled_bf16), TORCH),
}
"""The forms of each operator, in the order in which they are considered; the last one runs everywhere."""


def choose_operators(loaded: Loaded, situation: Situation) -> tuple[dict[str, Choice], list[Mistake]]:
    """The form of every operator, and what is wrong with the forms that the configuration asks for."""
    chosen, mistakes = dict[str, Choice](), list[Mistake]()
    for operator, forms in FORMS.items():
        asked = getattr(loaded.config.kernels.operators, operator)
        choice, refusal = _choose(operator, forms, asked, situation)
        chosen[operator] = choice
        if refusal is not None:
            path = f"kernels.operators.{operator}" if asked != "auto" else "kernels.backend"
            note = f"{path}=auto takes a form that can serve this run"
            mistakes.append(loaded.settings.mistake(f"{{0}}: {refusal}", path, note=note))
    return chosen, list(dict.fromkeys(mistakes))


def timed_forms(situation: Situation) -> tuple[str, ...]:
    """The forms of attention that serve a run alike, so that the fastest is found by measuring; or none.

    A form that is asked for is not measured, nor is anything in a run that must repeat itself bit by bit.
    """
    config, shape = situation.config, situation.shape
    left_open = config.kernels.operators.attention == "auto" and not config.run.deterministic
    if not left_open or shape is None or situation.device is None:
        return ()
    without = FLASH_PACKAGES if config.kernels.backend == "torch" else ()
    timed = [form for form in FORMS["attention"] if form.timed and form.name not in without]
    forms = tuple(form.name for form in timed if form.refuses(situation) is None)
    return forms if len(forms) > 1 else ()


def _choose(
    operator: str, forms: tuple[Form, ...], asked: str, situation: Situation
) -> tuple[Choice, str | None]:
    """The choice, and why it cannot be what was asked for."""
    backend, plain, measured = situation.config.kernels.backend, forms[-1], situation.measured
    named = {form.name: form for form in forms}
    if asked in named:
        return Choice(operator, asked, "as given"), named[asked].refuses(situation)
    if asked != "auto":
        return _registered(operator, asked, plain, situation)
    if backend == "triton" and "triton" in named:
        return Choice(operator, "triton", "kernels.backend"), named["triton"].refuses(situation)
    if measured is not None and measured.operator == operator and measured.form in timed_forms(situation):
        return measured, None
    for form in forms:
        if backend == "torch" and form.name in GENERATED:
            continue
        if form.refuses(situation) is None and (reason := form.best(situation)) is not None:
            return Choice(operator, form.name, reason), None
    raise AssertionError(f"the last form of {operator} is refused")


def _registered(operator: str, name: str, plain: Form, situation: Situation) -> tuple[Choice, str | None]:
    """The form that other code has registered under this name, or why it cannot be."""
    component, functions = find("operator", name), FUNCTIONS[operator]
    if component is None:
        forms = ", ".join(form.name for form in FORMS[operator])
        refusal = f"{operator} has no form of this name; it has {forms}, and what plugins register"
    elif (of := getattr(component.make, "operator", None)) != operator:
        refusal = f"{component.origin} is a form of {of!r} (its attribute `operator`), not of {operator}"
    elif not any(callable(getattr(component.make, each, None)) for each in functions):
        refusal = f"{component.origin} has none of the functions of {operator}: {', '.join(functions)}"
    else:
        answer: Any = getattr(component.make, "refuses", _never)(situation)
        if answer is not None and not (isinstance(answer, str) and answer):
            answer = f"{component.origin}.refuses must return a reason, or None; it returned {answer!r}"
        return Choice(operator, name, f"as given, {component.origin}"), answer
    return Choice(operator, plain.name, "plain PyTorch"), refusal


def show_choices(chosen: Mapping[str, Choice]) -> list[tuple[str, str, str]]:
    """(operator, form, why) of each, those with the most common answer together at the end."""
    answers = Counter((choice.form, choice.reason) for choice in chosen.values())
    ((usual, _),) = answers.most_common(1)
    rows = [(c.operator, c.form, c.reason) for c in chosen.values() if (c.form, c.reason) != usual]
    return [*rows, (f"{'other' if rows else 'all'} operators", *usual)]
