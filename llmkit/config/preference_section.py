"""Settings of training on preferences."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from llmkit.config.section import Section


class Dpo(Section):
    """Direct preference optimisation (Rafailov et al. 2023): of a pair of answers, the model learns to
    prefer the chosen one, in comparison with a reference model."""

    beta: Annotated[float, Field(gt=0.0)] = 0.1
    """How strongly the model is held to the reference: the rewards are beta times the difference of the
    answers' log-probabilities under the two. Of the loss ipo: 1 / (2 beta) is the margin that it aims at."""
    loss: Literal["sigmoid", "hinge", "ipo"] = "sigmoid"
    """Loss of a pair. sigmoid = that of DPO; hinge = max(0, 1 - margin of the rewards) (SLiC, Zhao et al.
    2023); ipo = a squared distance, of log-probabilities a token (Azar et al. 2023)."""
    label_smoothing: Annotated[float, Field(ge=0.0, lt=0.5)] = 0.0
    """Share of the pairs whose labels are taken to be wrong (only for sigmoid; Mitchell 2023)."""
    nll_weight: Annotated[float, Field(ge=0.0)] = 0.0
    """Weight of a further loss, the negative log-likelihood a token of the chosen answer, which keeps it from
    becoming unlikely together with the rejected one (Pang et al. 2024; 0.2 in Llama 3)."""
    reference: str | None = None
    """The reference model: a run folder, a checkpoint or a folder of Hugging Face's format; default:
    the model that training starts from. `llmkit reference` computes what training needs of it."""
