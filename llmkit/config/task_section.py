"""The settings of evaluations by tasks."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from llmkit.config.section import NonNegative, Positive, Section


class EvaluateTasks(Section):
    """Evaluation by tasks of EleutherAI's lm-eval during training, recorded as `eval/TASK/METRIC`."""

    names: list[Annotated[str, Field(min_length=1, max_length=200)]] = Field(default=[])
    """Tasks, groups, or patterns of them such as `arc_*`; none = no such evaluation."""
    every_steps: NonNegative = 0
    """Steps between these evaluations; 0 = only at the end."""
    include_path: str | None = None
    """A folder of tasks of your own, as YAML files, which are looked for there first."""
    num_fewshot: NonNegative | None = None
    """Examples before each question; default: as the task says."""
    limit: Positive | None = None
    """Only so many questions of each task; default: all."""
