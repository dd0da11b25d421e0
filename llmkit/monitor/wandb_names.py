"""Under which names a run appears in Weights & Biases: the settings, then W&B's own variables.

A setting that was given wins over its variable, as in wandb itself; those passed over are named to the user.
Variables that are not named here (WANDB_TAGS, WANDB_RUN_GROUP, WANDB_NOTES, WANDB_JOB_TYPE, WANDB_SWEEP_ID,
...) reach wandb in the mirror process, which heeds them itself.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, NamedTuple

from llmkit.config.mistakes import display
from llmkit.errors import UserError
from llmkit.monitor.wandb_mode import MODES, TRUE, resolve_mode

if TYPE_CHECKING:
    from llmkit.config.schema import Wandb

RUN_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
PROJECT = re.compile(r"[^/\\#?%:]{1,128}")
SETTINGS = {
    "WANDB_MODE": "mode",
    "WANDB_DISABLED": "mode",
    "WANDB_PROJECT": "project",
    "WANDB_ENTITY": "entity",
}
"""Variable: the setting of monitor.wandb that takes its value where it is not given itself."""
PASSED_OVER = {
    "WANDB_DIR": "the files of W&B lie in the run folder",
    "WANDB_RESUME": "a run always goes on under its own id",
    "WANDB_CONSOLE": "the console's output is not uploaded",
    "WANDB_SAVE_CODE": "code is not uploaded",
    "WANDB_DISABLE_CODE": "code is not uploaded",
    "WANDB_DISABLE_GIT": "addresses of git remotes may hold secrets",
    "WANDB_INIT_TIMEOUT": "the limits of the mirror process are fixed",
    "WANDB_FINISH_TIMEOUT": "the limits of the mirror process are fixed",
    "WANDB_FINISH_TIMEOUT_RAISES": "the limits of the mirror process are fixed",
}
"""Variable: why the mirror decides this itself."""
SAME = {
    "WANDB_CONSOLE": ("off",),
    "WANDB_SAVE_CODE": ("false", "0"),
    "WANDB_DISABLE_CODE": ("true", "1"),
    "WANDB_DISABLE_GIT": ("true", "1"),
    "WANDB_RESUME": ("allow",),
}
"""Values that say what holds anyway."""


class Names(NamedTuple):
    """What W&B shows of a run.

    run_id: for a run that has none yet; None = a new one. notes: a line for each variable passed over.
    """

    project: str
    entity: str | None
    name: str | None
    run_id: str | None
    notes: tuple[str, ...]


def resolve_names(settings: Wandb, origins: Mapping[str, str], environment: Mapping[str, str]) -> Names:
    """The names of a run. Raises UserError for a WANDB_PROJECT or WANDB_RUN_ID that W&B does not take.

    origins: of each setting, as in Loaded; a setting without one has its default.
    """
    project, entity = settings.project, settings.entity
    if _is_open("project", origins) and (named := environment.get("WANDB_PROJECT")):
        if not PROJECT.fullmatch(named):
            raise UserError(
                f"WANDB_PROJECT={display(named)}: a project's name has 1 to 128 characters, "
                "none of / \\ # ? % :"
            )
        project = named
    if _is_open("entity", origins):
        entity = environment.get("WANDB_ENTITY") or entity
    run_id = environment.get("WANDB_RUN_ID") or None
    if run_id is not None and not RUN_ID.fullmatch(run_id):
        raise UserError(
            f"WANDB_RUN_ID={display(run_id)}: an id has 1 to 64 characters, of letters, digits, - and _"
        )
    notes = tuple(_notes(settings, origins, environment))
    return Names(project, entity, environment.get("WANDB_NAME") or None, run_id, notes)


def check_environment(settings: Wandb, origins: Mapping[str, str], environment: Mapping[str, str]) -> None:
    """Raises UserError for variables that W&B would refuse, before there is any work to lose."""
    if resolve_mode(settings.mode, environment).mode != "disabled":
        resolve_names(settings, origins, environment)


def _is_open(setting: str, origins: Mapping[str, str]) -> bool:
    return origins.get(f"monitor.wandb.{setting}", "default") == "default"


def _notes(settings: Wandb, origins: Mapping[str, str], environment: Mapping[str, str]) -> Iterator[str]:
    """What is set in the environment and not heeded, with the reason."""
    for variable, setting in SETTINGS.items():
        given, value = environment.get(variable), getattr(settings, setting)
        if not given or value in ("auto", "disabled") or _is_open(setting, origins):
            continue
        asked = MODES.get(given.lower(), given) if setting == "mode" else given
        if variable == "WANDB_DISABLED":
            asked = "disabled" if given.lower() in TRUE else value
        if asked != value:
            path = f"monitor.wandb.{setting}"
            yield f"{variable}={display(given)} is passed over: {path} is {value} ({origins[path]})"
    for variable, reason in PASSED_OVER.items():
        given = environment.get(variable)
        if given and given.lower() not in SAME.get(variable, ()):
            yield f"{variable}={display(given)} is passed over: {reason}"
