"""Which of several fused kernels computes attention: recorded by the run, kept on disk, or measured."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from llmkit.config.context import ulysses_heads
from llmkit.config.shape import ModelShape
from llmkit.files import user_cache
from llmkit.kernels.attention_timing import Sizes, milliseconds
from llmkit.loop.describe import device_name
from llmkit.parallel.agreement import on_rank_zero
from llmkit.parallel.mesh import Mesh
from llmkit.plan import Plan
from llmkit.plan.form_rules import MEASURED, Choice
from llmkit.precision import torch_dtype
from llmkit.run_folder import RunFolder


def choose_attention(
    plan: Plan, mesh: Mesh, folder: RunFolder, resumes: bool, note: Callable[[str], None]
) -> Choice | None:
    """Collective. The form of attention that is found by measuring, the same on all ranks; or None.

    resumes: whether the run goes on from a checkpoint. It then keeps the form that its manifest.json names,
    if that was measured, still serves, and the device is of the same kind. Else rank 0 measures, or finds
    what an earlier start has measured.
    """
    if not plan.kernels.timed:
        return None

    def decide() -> str:
        choice = _recorded(folder, plan.kernels.timed, device_name(mesh.device)) if resumes else None
        choice = choice or _fastest(plan, mesh, note)
        return json.dumps(None if choice is None else asdict(choice))

    found = json.loads(on_rank_zero(mesh, decide))
    return None if found is None else Choice(**found)


def _recorded(folder: RunFolder, forms: tuple[str, ...], device: str) -> Choice | None:
    """The measured choice of the start before; None where there is none that counts here."""
    try:
        content: Any = json.loads((folder.path / "manifest.json").read_bytes())
        attention = content["kernels"]["operators"]["attention"]
        form, reason, before = attention["form"], attention["reason"], content["device"]
    except (OSError, ValueError, RecursionError, KeyError, TypeError):
        return None
    if form not in forms or not isinstance(reason, str) or not reason.startswith(MEASURED):
        return None
    return Choice("attention", form, reason) if before == device else None


def _fastest(plan: Plan, mesh: Mesh, note: Callable[[str], None]) -> Choice | None:
    """The form that takes the least time; None where none could be measured."""
    times = milliseconds(
        plan.kernels.timed,
        sizes_of(plan),
        mesh.device,
        device_name(mesh.device),
        user_cache(os.environ),
        note,
    )
    if not times:
        return None
    return Choice("attention", min(times, key=times.__getitem__), _reason(times))


def _reason(times: Mapping[str, float]) -> str:
    """As in "measured: cudnn 1.20 ms, flash 1.90 ms"."""
    fastest_first = sorted(times.items(), key=lambda item: item[1])
    return f"{MEASURED}: " + ", ".join(f"{form} {value:.2f} ms" for form, value in fastest_first)


def sizes_of(plan: Plan) -> Sizes:
    """What a layer of one rank computes attention of; Ulysses gives it whole rows of fewer heads."""
    model, layout = plan.model, plan.layout
    assert isinstance(model, ModelShape), "of other models no form of attention is measured"
    ranks = layout.tensor_parallel_size
    heads, kv_heads = ulysses_heads(
        model.num_attention_heads // ranks, max(1, model.num_key_value_heads // ranks),
        layout.context_parallel_size,
    )  # fmt: skip
    return Sizes(
        plan.micro_batch_size * plan.config.data.sequences_per_row, plan.config.data.sequence_length,
        heads=heads, kv_heads=kv_heads, head_dim=model.head_dim, dropout=model.attention_dropout,
        dtype=str(torch_dtype(plan.precision.compute)),
    )  # fmt: skip
