"""Published scaling laws: the loss of a model trained on so many tokens, and the best size for a budget.

Losses are nats a token of the authors' text under their tokenizer: those of other text are another scale, so
that a law says how losses differ rather than what they are. FLOPs are counted as 6 N D (Kaplan et al. 2020).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

FLOPS_PER_TOKEN = 6.0
"""For each parameter: forward and backward."""
PETAFLOP_DAY = 1e15 * 86400
HOFFMANN = "Hoffmann et al. 2022, Training compute-optimal large language models, arXiv 2203.15556"
BESIROGLU = "Besiroglu et al. 2024, Chinchilla scaling: a replication attempt, arXiv 2404.10102"
KAPLAN = "Kaplan et al. 2020, Scaling laws for neural language models, arXiv 2001.08361"


@dataclass(frozen=True)
class Optimum:
    """The best training for its FLOPs. loss: None where the law says nothing of it."""

    parameters: float
    tokens: float
    loss: float | None = None

    @property
    def flops(self) -> float:
        """6 N D."""
        return FLOPS_PER_TOKEN * self.parameters * self.tokens


class Law(Protocol):
    """What every law answers. embeddings: whether they count as parameters.

    formula: with its constants. tokens_for and flops_for return None where the law knows no answer, or no
    number of tokens reaches the loss.
    """

    @property
    def name(self) -> str: ...
    @property
    def source(self) -> str: ...
    @property
    def formula(self) -> str: ...
    @property
    def embeddings(self) -> bool: ...
    def optimum(self, flops: float) -> Optimum: ...
    def loss(self, parameters: float, tokens: float) -> float | None: ...
    def tokens_for(self, parameters: float, loss: float) -> float | None: ...
    def flops_for(self, loss: float) -> float | None: ...


@dataclass(frozen=True)
class Parametric:
    """L(N, D) = E + A / N^alpha + B / D^beta (Hoffmann et al. 2022, approach 3)."""

    name: str
    source: str
    floor: float
    a: float
    alpha: float
    b: float
    beta: float
    embeddings: bool = True

    @property
    def formula(self) -> str:
        """The law with its constants."""
        return f"L = {self.floor:g} + {self.a:g} / N^{self.alpha:g} + {self.b:g} / D^{self.beta:g}"

    def loss(self, parameters: float, tokens: float) -> float:
        """In nats a token."""
        return self.floor + self.a * parameters**-self.alpha + self.b * tokens**-self.beta

    def tokens_for(self, parameters: float, loss: float) -> float | None:
        """D of a model of this size; None where its size alone keeps it above the loss."""
        rest = loss - self.floor - self.a * parameters**-self.alpha
        return (self.b / rest) ** (1.0 / self.beta) if rest > 0.0 else None

    def optimum(self, flops: float) -> Optimum:
        """Where N and D with 6 N D = C have the least loss: the paper's equation 4."""
        both = self.alpha + self.beta
        ratio = (self.alpha * self.a / (self.beta * self.b)) ** (1.0 / both)
        parameters = ratio * (flops / FLOPS_PER_TOKEN) ** (self.beta / both)
        tokens = flops / FLOPS_PER_TOKEN / parameters
        return Optimum(parameters, tokens, self.loss(parameters, tokens))

    def flops_for(self, loss: float) -> float | None:
        """C of the best training that reaches the loss; None below the law's floor.

        Along the optimum both terms are powers of C with the same exponent, so that it is solved at once.
        """
        if loss <= self.floor:
            return None
        unit = self.optimum(1.0).loss
        assert unit is not None
        exponent = self.alpha * self.beta / (self.alpha + self.beta)
        return float(((unit - self.floor) / (loss - self.floor)) ** (1.0 / exponent))


@dataclass(frozen=True)
class Powers:
    """N and D of the best training as powers of C, through one row of a published table; no loss.

    at: FLOPs of that row, with its parameters and tokens.
    """

    name: str
    source: str
    at: float
    parameters: float
    tokens: float
    exponent: float
    embeddings: bool = True

    @property
    def formula(self) -> str:
        """The law with its constants."""
        return (
            f"N = {self.parameters:.3g} (C / {self.at:.3g})^{self.exponent:g}, "
            f"D = {self.tokens:.3g} (C / {self.at:.3g})^{1 - self.exponent:g}"
        )

    def optimum(self, flops: float) -> Optimum:
        """The row, scaled."""
        ratio = flops / self.at
        return Optimum(self.parameters * ratio**self.exponent, self.tokens * ratio ** (1.0 - self.exponent))

    def loss(self, parameters: float, tokens: float) -> None:
        """Not known."""

    def tokens_for(self, parameters: float, loss: float) -> None:
        """Not known."""

    def flops_for(self, loss: float) -> None:
        """Not known."""


@dataclass(frozen=True)
class Kaplan:
    """Along the best sizes N = 1.3e9 C^0.73 and L = (3.1e8 / C)^0.050, C in petaflop-days (appendix A, tables
    5 and 6).

    The paper's L(N, D), equation 1.5, is of training that is stopped once more passes over its data no longer
    help. Of a single pass it says too little: less than the best loss for the same FLOPs.
    """

    name: str = "Kaplan"
    source: str = KAPLAN
    formula: str = "N = 1.3e9 (C / PF-days)^0.73, L = (3.1e8 PF-days / C)^0.050 for the best size"
    embeddings: bool = False

    def optimum(self, flops: float) -> Optimum:
        """The tokens follow from 6 N D = C."""
        days = flops / PETAFLOP_DAY
        parameters = 1.3e9 * days**0.73
        return Optimum(parameters, flops / FLOPS_PER_TOKEN / parameters, (3.1e8 / days) ** 0.050)

    def loss(self, parameters: float, tokens: float) -> None:
        """Not known of a single pass."""

    def tokens_for(self, parameters: float, loss: float) -> None:
        """Not known of a single pass."""

    def flops_for(self, loss: float) -> float | None:
        """C of the best training that reaches the loss."""
        return 3.1e8 * PETAFLOP_DAY * float(loss ** (-1.0 / 0.050)) if loss > 0.0 else None


LAWS: tuple[Law, ...] = (
    Powers("Chinchilla 1", f"{HOFFMANN}, tables 2 and 3", 1.23e22, 10e9, 205.1e9, 0.50),
    Powers("Chinchilla 2", f"{HOFFMANN}, tables 2 and A3", 1.32e22, 10e9, 219.5e9, 0.49),
    Parametric("Chinchilla 3", f"{HOFFMANN}, equation 10", 1.69, 406.4, 0.34, 410.7, 0.28),
    Parametric("Chinchilla 3, refitted", BESIROGLU, 1.8172, 482.01, 0.3478, 2085.43, 0.3658),
    Kaplan(),
)
"""In the order of their pages; "Chinchilla 1" to "3" are the three approaches of one paper."""
USUAL = LAWS[3]
"""The one that the others are compared with where one number is needed: a fit of the same runs whose
constants agree with the paper's other two approaches."""
