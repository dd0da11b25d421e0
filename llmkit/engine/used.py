"""Which parameters take part in a backward pass; DeepSpeed needs the same ones in all of them."""

from __future__ import annotations

import json
from collections.abc import Mapping

from torch import Tensor

from llmkit.config.mistakes import NO_STAGE_NAMED, listed
from llmkit.errors import UserError
from llmkit.parallel.mesh import Mesh

SHOWN = 8
"""Parameters that a message names at most."""


def used_leaves(result: Tensor) -> set[int]:
    """`id` of each leaf that a backward pass from `result` gives a gradient."""
    waiting, seen, found = [result.grad_fn], set(), set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if isinstance(leaf := getattr(node, "variable", None), Tensor):
            found.add(id(leaf))
        waiting += [following for following, _ in node.next_functions]
    return found


class SameUse:
    """Checks that all backward passes, on all ranks, give gradients to the same parameters.

    DeepSpeed packs gradients into its messages in the order in which they come: where ranks have different
    ones it would sum those of different parameters, or wait for ever.
    """

    def __init__(self, parameters: Mapping[str, Tensor], mesh: Mesh) -> None:
        self.names = {id(parameter): name for name, parameter in parameters.items()}
        self.mesh = mesh
        self.unused: list[str] = []
        self.compared = False

    def check(self, objective: Tensor) -> None:
        """Before the backward pass from `objective`. Raises UserError; collective at the first call."""
        used = used_leaves(objective)
        unused = [name for leaf, name in self.names.items() if leaf not in used]
        compared = [unused, self.unused]
        if not self.compared:
            self.unused, self.compared = unused, True
            compared = [json.loads(text) for text in self.mesh.all_gather_text(json.dumps(unused))]
        if changed := sorted(set().union(*compared) - set(compared[0]).intersection(*compared)):
            raise UserError(
                f"the model uses {listed(changed, SHOWN)} for some batches only, which DeepSpeed does not "
                "support: let every batch use them, at a weight of zero where there is nothing to do, or set "
                "parallel.engine=native and parallel.zero_stage=2 or less, no offload, and launch "
                f"{NO_STAGE_NAMED}"
            )
