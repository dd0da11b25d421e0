"""Every variable of W&B has an answer here: heeded, left to wandb, or passed over with a reason."""

from __future__ import annotations

import re

import wandb
import wandb.env

from llmkit.monitor.wandb_environment import (
    ANSWERED,
    LEFT_TO_WANDB,
    PASSED_OVER,
    PRIVATE,
    SETTINGS,
    for_wandb,
    known_variables,
    passed_over,
)

NAMED_OTHERWISE = {  # fields of wandb's settings whose variable is not WANDB_FIELD
    "run_name": "WANDB_NAME",
    "run_notes": "WANDB_NOTES",
    "run_tags": "WANDB_TAGS",
    "run_job_type": "WANDB_JOB_TYPE",
    "x_service_transport": "WANDB_SERVICE",
}


def of_wandb() -> set[str]:
    """All variables that the installed wandb knows, but for private ones."""
    constants = {value for value in vars(wandb.env).values() if isinstance(value, str)}
    named = {value for value in constants if re.fullmatch(r"WANDB_[A-Z0-9_]+", value)}
    fields = {
        NAMED_OTHERWISE.get(field, f"WANDB_{field.upper()}")
        for field in wandb.Settings.model_fields
        if not field.startswith("x_")
    }
    return named | fields


def test_every_variable_of_wandb_is_in_one_list() -> None:
    assert of_wandb() - set(known_variables()) == set()
    lists = [*SETTINGS, *ANSWERED, *PASSED_OVER, *LEFT_TO_WANDB]
    assert [name for name in lists if lists.count(name) > 1] == []


def test_no_list_has_what_wandb_does_not_know() -> None:
    ours = {name for name in known_variables() if not name.startswith(PRIVATE)}
    assert ours - of_wandb() == {"WANDB_DISABLED"}, "which transformers knows"


def test_what_the_mirror_decides_itself_is_told_and_a_misspelt_name_too() -> None:
    given = {"WANDB_DIR": "/scratch", "WANDB_PROJET": "x", "WANDB_CONSOLE": "off", "WANDB_QUIET": "true"}
    assert list(passed_over(given)) == [
        'WANDB_DIR="/scratch" is passed over: the files of W&B lie in the run folder',
        "WANDB_PROJET is no variable of W&B; did you mean WANDB_PROJECT?",
    ]
    private = {"WANDB_X_DISABLE_META": "false", "WANDB_X_FILE_STREAM_RETRY_MAX": "3"}
    why = 'WANDB_X_DISABLE_META="false" is passed over: command lines may hold secrets'
    assert list(passed_over(private)) == [why]
    secret = {"WANDB_BASE_URL": "https://user:canary@host"}
    (line,) = passed_over(secret)
    assert line.startswith("the user, password or key in WANDB_BASE_URL is passed over")
    agents = {"WANDB_DIR": "/sweep", "WANDB_SWEEP_ID": "s", "WANDB__SERVICE_WAIT": "5"}
    assert list(passed_over(agents)) == []


def test_wandb_gets_what_holds_and_nothing_that_is_passed_over() -> None:
    given = {
        "PATH": "/bin",
        "WANDB_NAME": "old",
        "WANDB_TAGS": "a",
        "WANDB_FORK_FROM": "x",
        "WANDB_RUN_TAGS": "b",
        "WANDB_X_DISABLE_META": "false",
        "WANDB__STATS_PID": "1",
        "WANDB_QUIET": "1",
    }
    settings = {"WANDB_NAME": "new", "WANDB_TAGS": None, "WANDB_RUN_ID": "id"}
    assert for_wandb(given, settings) == {
        "PATH": "/bin",
        "WANDB_QUIET": "1",
        "WANDB_NAME": "new",
        "WANDB_RUN_ID": "id",
    }
