"""Under which names a run appears in Weights & Biases: the settings, then W&B's own variables.

A setting that was given wins over its variable, as in wandb itself; variables that are passed over are named
to the user.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlsplit

from llmkit.config.mistakes import display
from llmkit.errors import UserError
from llmkit.monitor.wandb_environment import SETTINGS, passed_over
from llmkit.monitor.wandb_mode import MODES, TRUE, resolve_mode

if TYPE_CHECKING:
    from llmkit.config.monitor_section import Wandb

RUN_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
PROJECT = re.compile(r"[^/\\#?%:]{1,128}")
SWEEP = "WANDB_SWEEP_ID"
TAG = re.compile(r"[^,]{1,64}")


class Names(NamedTuple):
    """What W&B shows of a run.

    run_id: for a run that has none yet; None = a new one. remarks: a line for each variable passed over.
    """

    project: str
    entity: str | None = None
    name: str | None = None
    tags: tuple[str, ...] = ()
    group: str | None = None
    notes: str | None = None
    job_type: str | None = None
    run_id: str | None = None
    remarks: tuple[str, ...] = ()

    def variables(self, run_id: str) -> dict[str, str | None]:
        """The same as wandb reads it from the environment."""
        return {
            "WANDB_PROJECT": self.project,
            "WANDB_ENTITY": self.entity,
            "WANDB_NAME": self.name,
            "WANDB_TAGS": ",".join(self.tags) or None,
            "WANDB_RUN_GROUP": self.group,
            "WANDB_NOTES": self.notes,
            "WANDB_JOB_TYPE": self.job_type,
            "WANDB_RUN_ID": run_id,
        }


def resolve_names(settings: Wandb, origins: Mapping[str, str], environment: Mapping[str, str]) -> Names:
    """The names of a run. Raises UserError for a value of a variable that W&B does not take.

    origins: of each setting, as in Loaded; a setting without one has its default.
    """
    given = {
        setting: environment[variable]
        for variable, setting in SETTINGS.items()
        if environment.get(variable) and _is_open(setting, origins, environment)
    }
    project = given.get("project", settings.project)
    if not PROJECT.fullmatch(project):
        raise UserError(
            f"WANDB_PROJECT={display(project)}: a project's name has 1 to 128 characters, "
            "none of / \\ # ? % :"
        )
    tags = tuple(settings.tags)
    if "tags" in given:
        tags = tuple(tag.strip() for tag in given["tags"].split(",") if tag.strip())
        if wrong := [tag for tag in tags if not TAG.fullmatch(tag)]:
            raise UserError(f"WANDB_TAGS: the tag {display(wrong[0])} is longer than 64 characters")
    run_id = environment.get("WANDB_RUN_ID") or None
    if run_id is not None and not RUN_ID.fullmatch(run_id):
        raise UserError(
            f"WANDB_RUN_ID={display(run_id)}: an id has 1 to 64 characters, of letters, digits, - and _"
        )
    server = environment.get("WANDB_BASE_URL")
    if server and not _is_address(server):
        raise UserError(f"WANDB_BASE_URL={display(server)}: an address begins with http:// or https://")
    return Names(
        project=project,
        entity=given.get("entity", settings.entity),
        name=given.get("name", settings.name),
        tags=tags,
        group=given.get("group", settings.group),
        notes=given.get("notes", settings.notes),
        job_type=given.get("job_type", settings.job_type),
        run_id=run_id,
        remarks=(*_contradicted(settings, origins, environment), *passed_over(environment)),
    )


def check_environment(
    settings: Wandb, origins: Mapping[str, str], environment: Mapping[str, str], run_dir: Path
) -> None:
    """Raises UserError for variables that W&B would refuse, before there is any work to lose.

    Also for a run of a sweep in the folder of another one, which the sweep would never hear of.
    """
    if resolve_mode(settings.mode, environment).mode == "disabled":
        return
    names = resolve_names(settings, origins, environment)
    known = known_run_id(run_dir)
    if SWEEP in environment and names.run_id and known not in (None, names.run_id):
        raise UserError(
            f"{run_dir} is the folder of another W&B run, {known}; a sweep needs one for each run: begin the "
            'command of the sweep as docs/examples/sweep.yaml does, with "run.name=sweep-$WANDB_RUN_ID"'
        )


def _is_address(url: str) -> bool:
    try:
        parts = urlsplit(url)
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and bool(parts.hostname)


def known_run_id(run_dir: Path) -> str | None:
    """The W&B id that a run folder has; None where it has none."""
    try:
        known = (run_dir / "wandb" / "run_id").read_text().strip()
    except (OSError, UnicodeDecodeError):
        return None
    return known if RUN_ID.fullmatch(known) else None


def _is_open(setting: str, origins: Mapping[str, str], environment: Mapping[str, str]) -> bool:
    """Whether a variable decides: where the setting is not given, and of a sweep what the agent says."""
    if SWEEP in environment and setting in ("project", "entity"):
        return True
    return origins.get(f"monitor.wandb.{setting}", "default") == "default"


def _contradicted(
    settings: Wandb, origins: Mapping[str, str], environment: Mapping[str, str]
) -> Iterator[str]:
    """Variables that say something else than a setting that was given; the other way round in a sweep."""
    for setting in ("project", "entity") if SWEEP in environment else ():
        path, value = f"monitor.wandb.{setting}", getattr(settings, setting)
        given = environment.get(f"WANDB_{setting.upper()}") or value
        if given != value and origins.get(path, "default") != "default":
            yield f"{path} = {value} ({origins[path]}) is passed over: that of the sweep is {display(given)}"
    for variable, setting in SETTINGS.items():
        given, value = environment.get(variable), getattr(settings, setting)
        if (
            not given
            or (setting == "mode" and value in ("auto", "disabled"))
            or _is_open(setting, origins, environment)
        ):
            continue
        asked = MODES.get(given.lower(), given) if setting == "mode" else given
        if variable == "WANDB_DISABLED":
            asked = "disabled" if given.lower() in TRUE else value
        shown = ",".join(value) if setting == "tags" else value
        if asked != shown:
            path = f"monitor.wandb.{setting}"
            yield f"{variable}={display(given)} is passed over: {path} is {shown} ({origins[path]})"
