"""What each scaling law says of a run, of a budget of FLOPs and of a loss."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from llmkit.config.custom_model import AnyModel
from llmkit.config.shape import ModelShape
from llmkit.estimate.scaling_laws import FLOPS_PER_TOKEN, LAWS, Law, Optimum


@dataclass(frozen=True)
class LawRow:
    """The answers of one law; None where it has none.

    parameters: of the model, as the law counts them. loss: of the run. best: for the same FLOPs. tokens: of
    this model to the loss that was asked for; wanted: the best training that reaches it.
    """

    law: Law
    parameters: float
    loss: float | None
    best: Optimum
    tokens: float | None = None
    wanted: Optimum | None = None

    def to_json(self) -> dict[str, Any]:
        """For programs."""
        wanted = None if self.wanted is None else asdict(self.wanted)
        return {
            "law": self.law.name, "source": self.law.source, "formula": self.law.formula,
            "parameters": self.parameters, "loss": self.loss, "best": asdict(self.best),
            "tokens_to_loss": self.tokens, "best_to_loss": wanted,
        }  # fmt: skip


def law_rows(
    model: AnyModel, tokens: float, *, flops: float | None = None, loss: float | None = None
) -> list[LawRow]:
    """A row a law for a model trained on so many tokens.

    flops: of which the best training is asked; default: those of the run. loss: to reach.
    """
    rows = []
    for law in LAWS:
        size = counted(model, law.embeddings)
        spent = FLOPS_PER_TOKEN * size * tokens if flops is None else flops
        wanted = None if loss is None else law.flops_for(loss)
        rows.append(
            LawRow(
                law, size, law.loss(size, tokens), law.optimum(spent),
                None if loss is None else law.tokens_for(size, loss),
                None if wanted is None else law.optimum(wanted),
            )
        )  # fmt: skip
    return rows


def counted(model: AnyModel, embeddings: bool) -> float:
    """Parameters of a model, without the embedding of tokens and positions where a law leaves these out."""
    if embeddings or not isinstance(model, ModelShape):
        return float(model.num_parameters)
    tables = model.num_added_parameters + model.vocab_size * model.hidden_size
    head = 0 if model.tie_word_embeddings else model.vocab_size * model.hidden_size
    return float(model.num_parameters - tables - head)
