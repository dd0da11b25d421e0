"""Evaluation by tasks of lm-eval while training, given up where the run is asked to stop."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from llmkit.config.schema import Config
from llmkit.data.prefetch import Interrupted
from llmkit.evaluation.harness import Tasks, figures, run_tasks
from llmkit.evaluation.hub_text import HubText
from llmkit.evaluation.score import Scorer
from llmkit.evaluation.team import led
from llmkit.loop.control import Poll
from llmkit.loop.stop import LATE
from llmkit.monitor.metrics import MetricsFile
from llmkit.parallel.agreement import on_rank_zero
from llmkit.parallel.mesh import Mesh

if TYPE_CHECKING:
    from llmkit.loop.trainer import Trainer


def tasks_of(config: Config) -> Tasks | None:
    """What the run is to be evaluated by; None = nothing."""
    asked = config.evaluate.tasks
    if not asked.names:
        return None
    return Tasks(tuple(asked.names), asked.include_path, asked.num_fewshot, asked.limit)


def tasks_due(config: Config, step: int, at_end: bool) -> bool:
    """Whether the settings ask for an evaluation by tasks at this step."""
    every = config.evaluate.tasks.every_steps
    return bool(config.evaluate.tasks.names) and (at_end or (every > 0 and step > 0 and step % every == 0))


def evaluate_tasks(t: Trainer, stop_code: Callable[[], int]) -> dict[str, float] | None:
    """The figures of the weights of now, by the names of their columns, on rank 0. All ranks call it.

    Raises Interrupted, on all of them, where one is asked to stop meanwhile.
    """
    tasks, poll = tasks_of(t.config), Poll(t.control, stop_code)
    assert tasks is not None

    def give_up() -> None:
        if why := poll():
            raise Interrupted(why)

    tokens = t.plan.micro_batch_size * t.config.data.sequence_length
    text = HubText(t.data.tokenizer)
    scorer = Scorer.of_engine(t.engine, t.plan, text, t.mesh, tokens, before_batch=give_up)
    results = led(scorer, lambda lead: run_tasks(tasks, lead, {}, quiet=True))
    return None if results is None else {f"eval/{name}": value for name, value in figures(results).items()}


def tasks_stop_code(t: Trainer) -> int:
    """Why this rank would give up an evaluation by tasks: as `Trainer.stop_code`.

    Where all steps are done time that is over is a reason, too, but none to stop the run.
    """
    if not t.state.finished():
        return t.stop_code()
    return t.stop.code(timed=False) or (LATE if t.time_over() else 0)


def leave_out(t: Trainer) -> None:
    """Says that there was no time for the evaluation by tasks at the end."""
    t.events.record("tasks_left_out", step=t.state.step)
    t.console.note(
        f"evaluate.tasks left out: train.max_minutes is over; `llmkit evaluate {t.folder.path} --tasks "
        f"{','.join(t.config.evaluate.tasks.names)}` makes it"
    )


def tasks_on_record(metrics: MetricsFile, step: int, mesh: Mesh) -> bool:
    """Whether the evaluation by tasks of this step is on record, which rank 0 has. Collective."""

    def found() -> str:
        rows = (row for row in metrics.rows() if row.get("step") == step and "loss" not in row)
        return str(any(name.startswith("eval/") for row in rows for name in row))

    return on_rank_zero(mesh, found) == "True"
