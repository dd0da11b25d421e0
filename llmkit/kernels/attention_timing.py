"""How long the forms of attention take for the sizes of a run, measured once and kept for later starts."""

from __future__ import annotations

import hashlib
import json
import math
import os
import stat
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from llmkit.config.operators import FLASH_PACKAGES
from llmkit.files import write_atomic
from llmkit.kernels.attention_backends import ORDERS, prepare, serves
from llmkit.kernels.compiler import reason_of
from llmkit.kernels.operators import Operators

ROUNDS, CALLS = 5, 4
"""The forms take turns for some rounds of some calls each; the first call of each form is not counted."""
AGREES = 0.03
"""Most that flash attention of another package may differ from PyTorch's, as a share of each result's norm:
several times what two correct ones in bf16 do."""
LARGEST_FILE = 2**16
"""Bytes; ours have some hundred."""


@dataclass(frozen=True)
class Sizes:
    """Plain causal attention as one layer of a rank computes it. dtype: as in "torch.bfloat16"."""

    rows: int
    positions: int
    heads: int
    kv_heads: int
    head_dim: int
    dropout: float
    dtype: str


def milliseconds(
    forms: Sequence[str],
    sizes: Sizes,
    device: torch.device,
    device_name: str,
    folder: Path,
    note: Callable[[str], None],
) -> dict[str, float]:
    """Milliseconds of a forward and a backward pass, by form; from `folder`, or measured and kept there.

    device_name: the kind of device. There is one file for each kind of device, software, sizes and list of
    forms. One that is damaged or not this user's is not used and is made anew, with one line to `note`;
    where it cannot be written, there is a line, too, and on each package that is left out of measuring.
    """
    software: dict[str, Any] = {"torch": str(torch.__version__), "cudnn": torch.backends.cudnn.version()}
    software |= {form: _versions(FLASH_PACKAGES[form][1]) for form in forms if form in FLASH_PACKAGES}
    key = {"device": device_name, "forms": list(forms)} | software | asdict(sizes)
    digest = hashlib.blake2b(json.dumps(key, sort_keys=True).encode(), digest_size=8).hexdigest()
    path = folder / f"attention-{digest}.json"
    try:
        if os.path.lexists(path):
            return _read(path, key, forms)
    except (OSError, ValueError, RecursionError) as error:
        note(f"{path} is not used, and attention is measured anew: {error}")
    try:
        tried = measured(forms, sizes, device, note)
    except torch.OutOfMemoryError:
        return {}
    found = {form: value for form, value in tried.items() if math.isfinite(value)}
    if not found or len(found) < len(tried):  # memory may be free at the next start, which tries again
        return found
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with write_atomic(path) as file:
            file.write((json.dumps({"key": key, "milliseconds": found}, indent=2) + "\n").encode())
    except OSError as error:
        note(f"the times of attention cannot be kept for the next start: {error}")
    return found


def _versions(package: str) -> list[str]:
    """What is installed that has files in the package, with its version."""
    found = set(metadata.packages_distributions().get(package, ()))
    return sorted(f"{name} {metadata.version(name)}" for name in found)


def _read(path: Path, key: Mapping[str, Any], forms: Sequence[str]) -> dict[str, float]:
    """The times in a file of ours. Raises ValueError or OSError where it is anything else."""
    about = path.lstat()
    if not stat.S_ISREG(about.st_mode) or about.st_uid not in (os.getuid(), 0):
        raise ValueError("it is not a file of this user")
    with path.open("rb") as file:
        content = json.loads(file.read(LARGEST_FILE))
    if not isinstance(content, dict) or content.get("key") != key:
        raise ValueError("it does not hold what its name says")
    times = content.get("milliseconds")
    if (
        not isinstance(times, dict)
        or not times
        or not all(
            form in forms and isinstance(value, float) and math.isfinite(value) and value > 0.0
            for form, value in times.items()
        )
    ):
        raise ValueError("it holds no times of these forms")
    return times


def measured(
    forms: Sequence[str], sizes: Sizes, device: torch.device, note: Callable[[str], None]
) -> dict[str, float]:
    """Milliseconds of a forward and a backward pass, by form: medians of rounds in turns.

    Not compiled, as torch.compile calls the same kernels. Forms that cannot serve the sizes are left out,
    with one line to `note` on each of another package; one for which there is not enough memory has an
    infinite time. Afterwards PyTorch's own flash attention is in use.
    """
    short = dict[str, float]()
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(0)
        inputs = _inputs(sizes, device)
        spent: dict[str, list[float]] = {}
        for form in forms:
            try:
                refusal = _refusal(form, inputs, sizes, device)
                if refusal is None:
                    spent[form] = []
                elif form in FLASH_PACKAGES:
                    package = ", ".join(_versions(FLASH_PACKAGES[form][1])) or FLASH_PACKAGES[form][1]
                    note(f"attention is not measured with {form} ({package}): {refusal}")
            except torch.OutOfMemoryError:
                short[form] = math.inf
        for _ in range(ROUNDS):
            for form, times in spent.items():
                Operators.of({"attention": form})  # puts its kernels in place, outside of the time
                begun = _now(device)
                _run(form, inputs, sizes, CALLS)
                times.append((_now(device) - begun) * 1000.0 / CALLS)
    del inputs
    prepare("flash")
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return {form: median(times) for form, times in spent.items()} | short


def _inputs(sizes: Sizes, device: torch.device) -> list[Tensor]:
    """Queries, keys and values, and a gradient of what they give."""
    dtype = getattr(torch, sizes.dtype.removeprefix("torch."))
    heads = (sizes.heads, sizes.kv_heads, sizes.kv_heads, sizes.heads)
    q, k, v, gradient = (
        torch.randn((sizes.rows, sizes.positions, each, sizes.head_dim), device=device, dtype=dtype)
        for each in heads
    )
    return [*(x.requires_grad_() for x in (q, k, v)), gradient]


def _refusal(form: str, inputs: list[Tensor], sizes: Sizes, device: torch.device) -> str | None:
    """Why a form cannot compute it, by trying; a backend that cannot would leave it to the next one.

    What another package computes must be what PyTorch does. Raises OutOfMemoryError.
    """
    q, k, v, _ = inputs
    asked = device.type == "cuda" and form in (*ORDERS, *FLASH_PACKAGES)
    if asked and not serves(form, q, k, v, sizes.dropout):
        return f"PyTorch says that it does not take {sizes}"
    try:
        found = _run(form, inputs, sizes, 1)
        return _difference(found, _run("flash", inputs, sizes, 1)) if form in FLASH_PACKAGES else None
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        if form in FLASH_PACKAGES or isinstance(error, RuntimeError):  # kernels of others raise anything
            return f"it failed with {type(error).__name__}: {reason_of(error)}"
        raise


def _difference(found: Sequence[Tensor], wanted: Sequence[Tensor]) -> str | None:
    """What of these tensors differs by more than rounding, or is not finite; None where nothing does."""
    names = ("the output", "the gradient of q", "the gradient of k", "the gradient of v")
    for name, one, other in zip(names, found, wanted, strict=True):
        share = float((one.float() - other.float()).norm() / other.float().norm())
        if not share <= AGREES:
            return f"{name} is {share:.1%} away from what PyTorch's flash attention gives"
    return None


def _run(form: str, inputs: list[Tensor], sizes: Sizes, calls: int) -> tuple[Tensor, ...]:
    """What attention gives, and the gradients of queries, keys and values."""
    attend = Operators.of({"attention": form}).attention
    *inputs, gradient = inputs
    found: tuple[Tensor, ...] = ()
    for _ in range(calls):
        output = attend(*inputs, dropout=sizes.dropout)
        found = (output.detach(), *torch.autograd.grad(output, inputs, gradient))
    return found


def _now(device: torch.device) -> float:
    """Seconds, when all that the device was given is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
