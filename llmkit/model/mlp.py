"""The position-wise half of a block."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from llmkit.config.model_section import Mlp
from llmkit.kernels.operators import TORCH, Operators
from llmkit.model.layers import FusedColumnLinear, RowLinear
from llmkit.parallel.mesh import TensorParallel


class Gated(nn.Module):
    """down(activation(gate(x), up(x))) (Shazeer 2020). function: the operator that is the activation."""

    function: ClassVar[str]

    def __init__(
        self,
        hidden_size: int,
        intermediate_size: int,
        bias: bool,
        tp: TensorParallel,
        operators: Operators = TORCH,
    ) -> None:
        super().__init__()
        widths = {"gate_proj": intermediate_size, "up_proj": intermediate_size}
        self.gate_up = FusedColumnLinear(hidden_size, widths, bias, tp, operators)
        self.down_proj = RowLinear(intermediate_size, hidden_size, bias, tp, operators)
        self.activation = getattr(operators, self.function)

    def forward(self, x: Tensor) -> Tensor:
        """x: (batch, seq, hidden) -> (batch, seq, hidden)."""
        gate, up = self.gate_up(x)  # (batch, seq, intermediate / tp) each
        return self.down_proj(self.activation(gate, up))


class SwiGLU(Gated):
    """silu(gate) * up, as in Llama."""

    function = "swiglu"


class GeGLU(Gated):
    """gelu(gate) * up in the tanh approximation, as in Gemma."""

    function = "geglu"


class Ungated(nn.Module):
    """down(activation(up(x))). function: the operator that is the activation."""

    function: ClassVar[str]

    def __init__(
        self,
        hidden_size: int,
        intermediate_size: int,
        bias: bool,
        tp: TensorParallel,
        operators: Operators = TORCH,
    ) -> None:
        super().__init__()
        self.up_proj = FusedColumnLinear(hidden_size, {"up_proj": intermediate_size}, bias, tp, operators)
        self.down_proj = RowLinear(intermediate_size, hidden_size, bias, tp, operators)
        self.activation = getattr(operators, self.function)
        self.activation_adds_bias = bias and getattr(self.activation, "adds_bias", False)

    def forward(self, x: Tensor) -> Tensor:
        """x: (batch, seq, hidden) -> (batch, seq, hidden)."""
        (up,) = self.up_proj(x, add_bias=not self.activation_adds_bias)  # (batch, seq, intermediate / tp)
        bias = self.up_proj.bias if self.activation_adds_bias else None
        return self.down_proj(self.activation(up, bias))


class GELU(Ungated):
    """GELU in its tanh approximation, as in GPT-2."""

    function = "gelu"


class ReLU2(Ungated):
    """relu(x)^2 (So et al. 2021, Primer)."""

    function = "relu2"


MLPS: dict[Mlp, type[Gated] | type[Ungated]] = {
    "swiglu": SwiGLU,
    "geglu": GeGLU,
    "gelu": GELU,
    "relu2": ReLU2,
}


def make_mlp(
    kind: Mlp,
    hidden_size: int,
    intermediate_size: int,
    bias: bool,
    tp: TensorParallel,
    operators: Operators = TORCH,
) -> nn.Module:
    """The MLP that the configuration names."""
    return MLPS[kind](hidden_size, intermediate_size, bias, tp, operators)
