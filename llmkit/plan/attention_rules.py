"""The rules by which a form of attention is refused, or chosen where nothing is asked for."""

from __future__ import annotations

from llmkit.config.context import OLDEST_FUSED, ring_is_fused
from llmkit.config.operators import FLASH_PACKAGES
from llmkit.plan.form_rules import Situation, compiled_bf16
from llmkit.precision import BYTES


def compiled_on_cpu(s: Situation) -> str | None:
    """Selective recomputation would keep the scores of blocks."""
    on_cpu = s.device is not None and s.device.kind == "cpu"
    selective = s.layout.activation_checkpointing == "selective"
    return "compiled on a CPU" if on_cpu and s.compiled and not selective else None


def varlen_refuses(s: Situation) -> str | None:
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


def documents_or_window(s: Situation) -> str | None:
    """Documents, or on a GPU windows, which other forms compute in full and mask."""
    if s.config.data.document_masks:
        return "documents are masked"
    on_gpu = s.device is not None and s.device.kind == "cuda"
    return "windows" if on_gpu and windowed(s) else None


def masked(s: Situation) -> bool:
    """Whether attention is more than causal; what fused attention then needs is a mask."""
    return s.config.data.document_masks or windowed(s)


def windowed(s: Situation) -> bool:
    """Whether a position cannot see the whole row before it."""
    window = None if s.shape is None else s.shape.sliding_window
    return window is not None and window < s.config.data.sequence_length


def backend_refuses(s: Situation, kernel: str, widest: int) -> str | None:
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
    if masked(s):
        return f"{kernel} is for causal attention without masks of documents or windows"
    if s.shape is not None and (s.shape.head_dim % 8 or s.shape.head_dim > widest):
        return f"{kernel} takes heads of 8, 16, ... {widest}, not {s.shape.head_dim}"
    return None


def cudnn_refuses(s: Situation) -> str | None:
    """What cuDNN's attention cannot do."""
    return backend_refuses(s, "cuDNN's attention", 128)


def flash_refuses(s: Situation) -> str | None:
    """What PyTorch's flash attention cannot do."""
    return backend_refuses(s, "flash attention", 256)


def package_refuses(s: Situation, form: str, generations: tuple[int, ...], widest: int) -> str | None:
    """What flash attention by another package cannot do."""
    kernel = f"flash attention {form[-1]}"
    if s.shape is not None and s.shape.attention_dropout > 0.0:
        return f"{kernel} has no dropout"
    if (refusal := backend_refuses(s, kernel, widest)) is not None or s.device is None:
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


def efficient_refuses(s: Situation) -> str | None:
    """Of groups of heads it would need copies of keys and values."""
    kernel = "memory-efficient attention"
    if s.shape is not None and s.shape.num_key_value_heads != s.shape.num_attention_heads:
        return f"{kernel} takes as many key and value heads as query heads"
    return backend_refuses(s, kernel, 256)


def plain_causal(s: Situation) -> str | None:
    """Where its kernel is used in every layer: what else is asked of attention it leaves to `blocks`."""
    if s.shape is None or s.shape.attention_dropout or s.shape.attn_logit_softcapping:
        return None
    selective = s.layout.activation_checkpointing == "selective"
    return None if selective or masked(s) else compiled_bf16(s)


def fused_ring(s: Situation) -> bool:
    """Whether blocks of a ring without masks have a fused kernel; an unknown device is taken to be a GPU that
    may have it, a registered model to have heads that fit."""
    kind, capability = ("cuda", OLDEST_FUSED) if s.device is None else (s.device.kind, s.device.capability)
    head_dim = 0 if s.shape is None else s.shape.head_dim
    return ring_is_fused(kind, capability, BYTES[s.precision.compute] == 2, head_dim)
