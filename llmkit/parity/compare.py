"""Differences of a case from a single process, and the limits on them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from llmkit.checkpoint.pieces import EMA
from llmkit.parity.cases import Case
from llmkit.parity.run import Trajectory
from llmkit.parity.subjects import MODELS

FP32 = {
    "initial loss": 1e-6,
    "loss": 1e-5,
    "initial norm": 2e-6,
    "norm": 1e-5,
    "initial gradient": 2e-6,
    "gradient": 1e-5,
    "part": 1e-5,
    "weight": 1e-5,
    "moving average": 1e-5,
    "first moment": 1e-5,
    "second moment": 2e-5,  # a square differs by twice what its root does
}
"""The largest relative differences; of tensors in the Euclidean norm, ||a - b|| / ||b||. Elements differ
more: where a gradient is nearly nothing, AdamW makes full steps of its rounding. Initial: of the first
step, when weights are still equal."""
FLOOR = 0.01
"""Gradients smaller than this share of the whole gradient are measured against that share."""
NUMBER_FLOOR = 0.05
"""The same of a number alone that multiplies activations: its gradient sums as many terms as there are."""
ROUNDED_LOSS = {"bf16": 2e-3, "fp8": 1e-2}
ROUNDED_SHARE = {"bf16": 2.0, "fp8": 1.5}
"""Tensors may differ by this many times what fp32 on one process differs from it. In fp8, in which each rank
rounds by a scale of its own, two layouts have errors of the same size, independent after some steps: they
differ by sqrt(2) times as much."""
NORM_SHARE = {"bf16": 2.0, "fp8": 3.0}
"""The same of gradient norms: each is a single number, to which errors of either sign add up, and the noise
is the largest of a few steps. Of many cases one is by chance at twice that."""

Errors = dict[str, dict[str, float]]
"""Sort of quantity -> where -> relative difference."""


class Reference(NamedTuple):
    """A single process; for a case in bf16 or fp8 also the same in fp32."""

    same: Trajectory
    fp32: Trajectory | None


@dataclass(frozen=True)
class Deviation:
    """The largest difference of one sort of quantity: where it is, its size, and the size allowed."""

    sort: str
    where: str
    found: float
    allowed: float

    @property
    def is_failure(self) -> bool:
        """Whether it is too large; so is what is no number."""
        return not self.found <= self.allowed

    def __str__(self) -> str:
        return f"{self.sort} ({self.where}) differs by {self.found:.1e}, allowed is {self.allowed:.1e}"


def compare(found: Trajectory, reference: Reference, case: Case) -> list[Deviation]:
    """The largest difference of each sort."""
    differences = []
    noise = None if reference.fp32 is None else errors(reference.same, reference.fp32, case)
    for sort, places in errors(found, reference.same, case).items():
        where = max(places, key=lambda place: _order(places[place]))
        if noise is None:
            allowed = FP32[sort]
        elif sort.endswith("loss"):
            allowed = ROUNDED_LOSS[case.precision]
        else:
            general = sort.removeprefix("initial ")
            shares = NORM_SHARE if general == "norm" else ROUNDED_SHARE
            allowed = shares[case.precision] * max([*noise[sort].values(), *noise[general].values()])
        differences.append(Deviation(sort, where, places[where], allowed))
    missed = abs(found.optimizer_steps - reference.same.optimizer_steps)
    replicas = Deviation("replicas", ", ".join(found.drifted[:3]), len(found.drifted), 0.0)
    memory = Deviation("memory", "; ".join(found.memory[:3]), len(found.memory), 0.0)
    return [*differences, replicas, memory, Deviation("updates", "the run", missed, 0.0)]


def _order(error: float) -> float:
    return error if error == error else float("inf")  # no number is worse than any


def errors(found: Trajectory, expected: Trajectory, case: Case) -> Errors:
    """The relative differences of all that is compared."""
    result: Errors = {sort: {} for sort in FP32}
    for step in range(len(expected.losses)):
        initial = "" if step else "initial "
        loss, norm = expected.losses[step], expected.norms[step]
        result[f"{initial}loss"][f"step {step}"] = abs(found.losses[step] / loss - 1)
        result[f"{initial}norm"][f"step {step}"] = abs(found.norms[step] / norm - 1)
        for name, part in expected.parts.get(step, {}).items():
            numbers = zip(found.parts[step][name].flatten(), part.flatten(), strict=True)
            error = max(relative_error(one, other) for one, other in numbers)
            result["part"][f"{name}, step {step}"] = error
        if step in expected.gradients:
            pairs = _tensor_errors(found.gradients[step], expected.gradients[step], case, floors=True)
            result[f"{initial}gradient"] |= {f"{name}, step {step}": error for name, error in pairs.items()}
    kinds = {"master": "weight", EMA: "moving average", "first": "first moment"}
    kinds["exp_avg_sq"] = "second moment"
    for kind, sort in kinds.items():
        result[sort] = _tensor_errors(found.state[kind], expected.state[kind], case, floors=kind == "first")
    return result


def _tensor_errors(
    found: Mapping[str, Tensor], expected: Mapping[str, Tensor], case: Case, floors: bool
) -> dict[str, float]:
    """Of each tensor; one that is missing on either side is infinitely far.

    floors: of gradients, what is smaller than a share of all of them together is measured against that: its
    rounding is that of the large terms that have cancelled out in it.
    """
    size = float(torch.stack([tensor.double().norm() for tensor in expected.values()]).norm())
    names = [name for name in sorted({*found, *expected}) if not _is_noise(name, case)]
    both = {name for name in names if name in found and name in expected}

    def floor(name: str) -> float:
        return size * (NUMBER_FLOOR if expected[name].numel() == 1 else FLOOR) if floors else 0.0

    return {
        name: relative_error(found[name], expected[name], floor(name)) if name in both else float("inf")
        for name in names
    }


def relative_error(found: Tensor, expected: Tensor, floor: float = 0.0) -> float:
    """||found - expected|| / max(||expected||, floor), in fp64; two tensors of zeros are equal."""
    size = max(float(expected.double().norm()), floor)
    error = float((found.double() - expected.double()).norm())
    if size == 0.0:
        return 0.0 if error == 0.0 else float("inf")
    return error / size


def _is_noise(name: str, case: Case) -> bool:
    """The key bias shifts all of a query's scores equally, and softmax cancels it: its gradient is zero.

    Not where keys are rotated after it was added; but what is left then is too little for bf16.
    """
    rotated = MODELS[case.model].position_embedding == "rope"
    return name.endswith("k_proj.bias") and not (rotated and case.precision == "fp32")
