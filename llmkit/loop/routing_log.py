"""How tokens were spread over experts: columns of rows, the table of loads, and events where a router
fails."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from llmkit.config.custom_model import AnyModel
from llmkit.config.schema import Config
from llmkit.config.shape import ModelShape
from llmkit.model.routing import BALANCE, DROPPED, ENTROPY, LOADS, TARGETS, TOKENS, Z
from llmkit.monitor.jsonlines import Row
from llmkit.monitor.media import EXPERT_LOADS, table


class Failure(NamedTuple):
    """What has begun to go wrong since the row before. text: for people; where: layers, and experts."""

    event: str
    where: str
    text: str


class RoutingLog:
    """Adds up `StepResult.routing` between two rows, on the device; the same on all ranks.

    layers: names of those with experts. k: experts a token. dead: share of the mean load below which an
    expert counts as dead, collapsed: share of the experts' spread below which a router counts as collapsed,
    see `Monitor`; 0 = never. limited: whether choices can be dropped.
    """

    def __init__(
        self, layers: Sequence[str], experts: int, k: int, device: torch.device, *,
        dead: float, collapsed: float, limited: bool,
    ) -> None:  # fmt: skip
        self._layers, self._experts, self._k, self._device = list(layers), experts, k, device
        self._dead, self._collapsed, self._limited = dead, collapsed, limited
        self._sums: Tensor | None = None
        self._known: set[str] = set()
        """What failed at the row before; it is not reported again."""

    def add(self, sums: Tensor) -> None:
        """Adds a step. sums: (layers, LOADS + experts) fp64."""
        self._sums = sums if self._sums is None else self._sums + sums

    def take(self) -> Tensor | None:
        """The sums since the last call; None where there was nothing."""
        sums, self._sums = self._sums, None
        return sums

    def rows(self, values: Sequence[float]) -> list[list[float]]:
        """Flat numbers of sums -> those of each layer."""
        width = LOADS + self._experts
        return [list(values[at : at + width]) for at in range(0, len(values), width)]

    def columns(self, sums: Sequence[Sequence[float]]) -> dict[str, float]:
        """Columns of a training row; nothing where no row of data had a target. sums: of each layer."""
        found = [each for each in map(self._of_layer, sums) if each]
        if not found:
            return {}
        columns = {
            "router_entropy": sum(each["router_entropy"] for each in found) / len(found),
            "expert_load_max": max(each["expert_load_max"] for each in found),
            "expert_load_min": min(each["expert_load_min"] for each in found),
        }
        if self._limited:
            columns["expert_dropped"] = sum(each["expert_dropped"] for each in found) / len(found)
        return columns

    def layer_columns(self, sums: Sequence[Sequence[float]]) -> dict[str, float]:
        """Columns of a row of statistics."""
        return {
            f"{name}/{layer}": value
            for layer, numbers in zip(self._layers, sums, strict=True)
            for name, value in self._of_layer(numbers).items()
        }

    def _of_layer(self, numbers: Sequence[float]) -> dict[str, float]:
        loads, tokens = numbers[LOADS:], numbers[TOKENS]
        mean = sum(loads) / len(loads)
        if not (tokens and mean and numbers[TARGETS]):
            return {}
        found = {
            "router_entropy": numbers[ENTROPY] / tokens,
            "router_balance": numbers[BALANCE] / numbers[TARGETS],
            "router_z": numbers[Z] / numbers[TARGETS],
            "expert_load_max": max(loads) / mean,
            "expert_load_min": min(loads) / mean,
        }
        return found | ({"expert_dropped": numbers[DROPPED] / sum(loads)} if self._limited else {})

    def loads(self, sums: Sequence[Sequence[float]]) -> Row | None:
        """The table of loads, each as a multiple of its layer's mean, for media.jsonl; None without
        tokens."""
        found = []
        for layer, numbers in zip(self._layers, sums, strict=True):
            loads = numbers[LOADS:]
            mean = sum(loads) / len(loads)
            if mean:
                found.append([layer, *(round(load / mean, 4) for load in loads)])
        columns = ["layer", *map(str, range(self._experts))]
        return table(EXPERT_LOADS, columns, found) if found else None

    def failures(self, sums: Sequence[Sequence[float]]) -> list[Failure]:
        """What fails in these sums and did not before: dead experts, collapsed routers."""
        dead: dict[str, list[int]] = {}
        collapsed: dict[str, float] = {}
        known = set()
        for layer, numbers in zip(self._layers, sums, strict=True):
            loads = numbers[LOADS:]
            mean = sum(loads) / len(loads)
            if not mean:
                continue
            few = [number for number, load in enumerate(loads) if load < self._dead * mean]
            spread = self._spread(loads)
            known |= {f"{layer} {number}" for number in few}
            known |= {layer} if spread is not None and spread < self._collapsed else set()
            new = [number for number in few if f"{layer} {number}" not in self._known]
            if new:
                dead[layer] = new
            if layer in known and layer not in self._known and spread is not None:
                collapsed[layer] = spread
        self._known = known
        found = []
        if dead:
            where = "; ".join(f"{layer}: {', '.join(map(str, each))}" for layer, each in dead.items())
            text = f"experts with less than {self._dead:g} of the mean load (monitor.dead_expert): {where}"
            found.append(Failure("dead_experts", where, text))
        if collapsed:
            where = ", ".join(collapsed)
            spreads = ", ".join(f"{layer} {spread:.2g}" for layer, spread in collapsed.items())
            text = f"routers that send tokens to few experts (monitor.collapsed_router): spread of {spreads}"
            found.append(Failure("router_collapsed", where, text))
        return found

    def _spread(self, loads: Sequence[float]) -> float | None:
        """0 where all tokens go to the same k experts, 1 where all experts get as many; None where k is all.

        Of exp(entropy of the loads), which is n where n experts get as many each.
        """
        if self._k >= len(loads):
            return None
        total = sum(loads)
        entropy = -sum(load / total * math.log(load / total) for load in loads if load)
        return max(0.0, math.exp(entropy) - self._k) / (len(loads) - self._k)

    def state(self) -> dict[str, Any]:
        """What no row has taken yet, as JSON for a checkpoint; waits for the device."""
        sums = [] if self._sums is None else [[repr(each) for each in row] for row in self._sums.tolist()]
        return {"sums": sums, "known": sorted(self._known)}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Goes on after `state`; what is of a mixture of other sizes is dropped."""
        self._sums, self._known = None, set(state.get("known", ()))
        sums = state.get("sums", [])
        if len(sums) == len(self._layers) and all(len(row) == LOADS + self._experts for row in sums):
            values = [[float(text) for text in row] for row in sums]
            self._sums = torch.tensor(values, dtype=torch.float64, device=self._device)


def routing_log(config: Config, model: AnyModel, device: torch.device) -> RoutingLog | None:
    """As the settings say; None for a model without experts."""
    if not isinstance(model, ModelShape):
        return None
    layers = [f"blocks.{layer}" for layer in range(model.num_hidden_layers) if model.has_experts(layer)]
    if not layers:
        return None
    moe, monitor = model.moe, config.monitor
    return RoutingLog(
        layers, moe.num_experts, moe.num_experts_per_tok, device,
        dead=monitor.dead_expert, collapsed=monitor.collapsed_router,
        limited=moe.capacity_factor is not None,
    )  # fmt: skip
