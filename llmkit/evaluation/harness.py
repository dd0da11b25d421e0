"""Evaluation by the tasks of EleutherAI's lm-eval, an optional package that is imported when it is used."""

from __future__ import annotations

import difflib
import io
import json
import logging
import os
import random
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, redirect_stderr
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from llmkit.errors import UserError
from llmkit.evaluation.answer_rules import read_rules
from llmkit.evaluation.team import Lead
from llmkit.extras import missing_extra
from llmkit.files import plain

if TYPE_CHECKING:
    from lm_eval.tasks import TaskManager

SEED = 1234
"""Of the choice of few-shot examples and of metrics that draw; that of lm-eval's own command."""
HUB_ERRORS = ("datasets.exceptions", "huggingface_hub", "requests", "httpx")
"""Modules of exceptions that a data set of the hub ends in."""


@dataclass(frozen=True)
class Tasks:
    """What to evaluate by.

    names: tasks, groups, tags or patterns of them. include_path: a folder of own tasks, searched before
    lm-eval's. num_fewshot: examples before each question; None: as the task says. limit: questions of each
    task, None: all. apply_chat_template: questions are put as chats. system: message before each of them.
    bootstrap: resamples for the standard errors of metrics that have no formula for it; 0 = none at all.
    samples: the results hold every question with its answers.
    """

    names: tuple[str, ...]
    include_path: str | None = None
    num_fewshot: int | None = None
    limit: int | None = None
    apply_chat_template: bool = False
    system: str | None = None
    bootstrap: int = 0
    samples: bool = False


def check_installed() -> None:
    """Raises UserError where lm-eval is not installed."""
    if missing := missing_extra("eval", "lm_eval"):
        raise UserError(f"evaluation by tasks: {missing}")


def check_tasks(tasks: Tasks, context_length: int) -> None:
    """Raises UserError for tasks that cannot be run: what is not there, cannot be loaded, or asks for answers
    that a model which can see so many tokens cannot write."""
    check_installed()
    with _kept_random_states(), _quiet(True):
        _load(tasks, context_length)


def run_tasks(
    tasks: Tasks, lead: Lead, facts: Mapping[str, Any], *, quiet: bool = False
) -> dict[str, Any]:
    """lm-eval's results (its `EvalResults`), fit for JSON. On rank 0, inside `team.led`.

    facts: of the model, which are part of them. quiet: no progress bars, no warnings of lm-eval. The states
    of random generators are left as they were. Raises UserError for a task that is not there or that cannot
    be loaded.
    """
    check_installed()
    from lm_eval import evaluator
    from lm_eval.utils import handle_non_serializable

    from llmkit.evaluation.harness_model import HarnessModel

    with _kept_random_states(), _quiet(quiet), _one_process():
        random.seed(SEED)
        np.random.seed(SEED)
        torch.manual_seed(SEED)
        loaded = _load(tasks, lead.context_length)
        model = HarnessModel(lead, dict(facts), quiet=quiet)
        found = evaluator.evaluate(
            model,
            loaded,
            limit=tasks.limit,
            bootstrap_iters=tasks.bootstrap,
            log_samples=tasks.samples,
            system_instruction=tasks.system,
            apply_chat_template=tasks.apply_chat_template,
            fewshot_as_multiturn=tasks.apply_chat_template,
        )
    asked = {"limit": tasks.limit, "apply_chat_template": tasks.apply_chat_template}
    results = {**found, **asked, "model": dict(facts)}  # with functions, and numbers of numpy
    return dict(plain(json.loads(json.dumps(results, default=handle_non_serializable))))


def figures(results: Mapping[str, Any]) -> dict[str, float]:
    """TASK/METRIC -> value, of lm-eval's results; METRIC,FILTER where the answers were filtered."""
    return {
        f"{task}/{metric.removesuffix(',none')}": float(value)
        for task, metrics in results["results"].items()
        for metric, value in metrics.items()
        if "," in metric and "_stderr," not in metric and isinstance(value, int | float)
    }


def _load(tasks: Tasks, context_length: int) -> dict[str, Any]:
    """The tasks with their data, as lm-eval's `evaluate` takes them."""
    manager, names = _find(tasks)
    try:
        loaded: dict[str, Any] = manager.load(names)
    except Exception as error:  # of the task's files, its data, or its own code
        shown = f"{type(error).__name__}: {error}".strip().splitlines()[0]
        module = type(error).__module__
        remedy = "mend its files"
        if module.startswith(HUB_ERRORS) or isinstance(error, ConnectionError):
            remedy = (
                "its data are fetched from the Hugging Face hub, which needs the network (or a cache that "
                "has them); tasks of local files are named with --include-path or evaluate.tasks.include_path"
            )
        which = f"the task {names[0]}" if len(names) == 1 else f"one of the tasks {', '.join(names)}"
        raise UserError(f"{which} cannot be loaded ({shown}): {remedy}") from error
    for task in loaded["tasks"].values():
        if getattr(task, "UNSAFE_CODE", False):
            raise UserError(
                f"the task {task.config.task} runs programs that the model writes, which llmkit does not do; "
                "export the model and run it by lm-eval itself, in a sandbox"
            )
        if task.OUTPUT_TYPE == "generate_until":
            read_rules(task.config.generation_kwargs or {}, context_length)
        shots = task.get_config("num_fewshot")
        if tasks.num_fewshot is not None and shots != 0:  # 0 = the task must have none
            task.set_config(key="num_fewshot", value=tasks.num_fewshot)
        elif shots is None:
            task.set_config(key="num_fewshot", value=0)
        task.set_fewshot_seed(seed=SEED)
    return loaded


@cache
def _find(tasks: Tasks) -> tuple[TaskManager, list[str]]:
    """lm-eval's index of tasks, of the user's folder alone where that has all of them; the names in it."""
    from lm_eval.tasks import TaskManager

    known: list[str] = []
    if tasks.include_path is not None:
        if not os.path.isdir(tasks.include_path):
            raise UserError(f"{tasks.include_path}: there is no such folder of tasks")
        manager = TaskManager(include_path=tasks.include_path, include_defaults=False)
        if all(manager.match_tasks([name]) for name in tasks.names):
            return manager, manager.match_tasks(list(tasks.names))
        known = manager.all_tasks
    manager = TaskManager(include_path=tasks.include_path)
    for name in tasks.names:
        if not manager.match_tasks([name]):
            close = difflib.get_close_matches(name, known or manager.all_tasks, n=1)
            broken = _broken(tasks.include_path)
            raise UserError(
                f"there is no task {name!r}"
                + (f", did you mean {close[0]}?" if close else "")
                + (f" {broken}" if broken else "")
            )
    return manager, manager.match_tasks(list(tasks.names))


def _broken(folder: str | None) -> str:
    """Names a file of tasks that lm-eval leaves out because it cannot read it; "" = there is none."""
    from lm_eval.tasks._yaml_loader import load_yaml

    for path in sorted(Path(folder).glob("**/*.yaml")) if folder is not None else []:
        try:
            load_yaml(path, resolve_func=False)
        except Exception as error:
            return f"({path} cannot be read: {str(error).splitlines()[0]})"
    return ""


@contextmanager
def _kept_random_states() -> Iterator[None]:
    """What lm-eval draws in here changes no random number of the run."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    on_gpu = torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
        if on_gpu is not None:
            torch.cuda.set_rng_state(on_gpu)


@contextmanager
def _quiet(quiet: bool) -> Iterator[None]:
    """lm-eval's messages: warnings, or errors only and no progress bars, which it writes to stderr."""
    logger = logging.getLogger("lm_eval")
    before = logger.level
    logger.setLevel(logging.ERROR if quiet else logging.WARNING)
    with ExitStack() as stack:
        stack.callback(logger.setLevel, before)
        if quiet:
            stack.enter_context(redirect_stderr(io.StringIO()))
        yield


@contextmanager
def _one_process() -> Iterator[None]:
    """lm-eval's standard errors are computed in this process, which has threads and maybe a GPU, unforked."""
    name = "DISABLE_MULTIPROC"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


