"""The rows of a run in other trackers than Weights & Biases, by the classes of `accelerate.tracking`."""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmkit.config.mistakes import display
from llmkit.config.redaction import Redactor
from llmkit.config.schema import Config
from llmkit.config.walk import leaves
from llmkit.errors import UserError
from llmkit.extras import missing_package
from llmkit.files import write_json
from llmkit.monitor.sink import Sink

IDS = "trackers.json"
"""In the run folder: under which id each tracker knows the run, so that a resume goes on with it."""
_ids_change = threading.Lock()
"""Each tracker starts in a thread of its own."""


@dataclass(frozen=True)
class Start:
    """What a tracker is started with. first_step: of its first row; known: the id of earlier starts."""

    folder: Path
    project: str
    name: str
    first_step: int
    known: str | None

    @property
    def key(self) -> str:
        """An id for trackers that take one: the same for every start in this folder."""
        return hashlib.sha256(str(self.folder.resolve()).encode()).hexdigest()[:32]


@dataclass(frozen=True)
class Tracker:
    """How one of accelerate's classes is made. package: that must be installed. arguments: of the class. id:
    finds the id of the run in what the class has started; None where the name, or the folder, is enough."""

    package: str
    arguments: Callable[[Start], dict[str, Any]]
    id: Callable[[Any], str] | None = None
    forbidden: str = r"[^\w\-./ ]"
    """Characters that the names of its metrics cannot have."""


def _aim(start: Start) -> dict[str, Any]:
    quiet = {"capture_terminal_logs": False, "system_tracking_interval": None, "log_system_params": False}
    return {"run_name": start.name, "logging_dir": str(start.folder), "run_hash": start.known, **quiet}


def _clearml(start: Start) -> dict[str, Any]:
    collected = ("arg_parser", "frameworks", "streams")
    quiet = {f"auto_connect_{name}": False for name in collected} | {"auto_resource_monitoring": False}
    again = {"continue_last_task": start.known} if start.known else {"reuse_last_task_id": False}
    return {"run_name": start.project, "task_name": start.name, **again, **quiet}


def _comet(start: Start) -> dict[str, Any]:
    quiet = ("log_code", "log_git_metadata", "log_git_patch", "log_env_details", "auto_output_logging")
    make = importlib.import_module("comet_ml").ExperimentConfig
    settings = make(name=start.name, **dict.fromkeys(quiet, False))
    return {"run_name": start.project, "experiment_key": start.key, "experiment_config": settings}


def _dvclive(start: Start) -> dict[str, Any]:
    folder = start.folder / "dvclive"
    return {"dir": str(folder), "resume": folder.exists(), "dvcyaml": None, "save_dvc_exp": False}


def _mlflow(start: Start) -> dict[str, Any]:
    tags = {"mlflow.source.git.repoURL": ""}  # which may hold a password
    return {"experiment_name": start.project, "run_name": start.name, "run_id": start.known, "tags": tags}


def _swanlab(start: Start) -> dict[str, Any]:
    quiet = dict.fromkeys(("runtime", "requirements", "git"), False)
    settings = importlib.import_module("swanlab").Settings(probe=quiet, terminal={"proxy_type": "none"})
    known = {"id": start.key[:21], "resume": "allow"}
    return {"run_name": start.project, "name": start.name, "settings": settings, **known}


def _tensorboard(start: Start) -> dict[str, Any]:
    """Steps that are done again replace those of before."""
    return {"run_name": "tensorboard", "logging_dir": str(start.folder), "purge_step": start.first_step}


def _trackio(start: Start) -> dict[str, Any]:
    return {"run_name": start.project, "name": start.name, "resume": "allow", "embed": False}


TRACKERS: dict[str, Tracker] = {
    "aim": Tracker("aim", _aim, lambda run: str(run.hash)),
    "clearml": Tracker("clearml", _clearml, lambda task: str(task.id)),
    "comet_ml": Tracker("comet_ml", _comet),
    "dvclive": Tracker("dvclive", _dvclive),
    "mlflow": Tracker("mlflow", _mlflow, lambda run: str(run.info.run_id)),
    "swanlab": Tracker("swanlab", _swanlab, forbidden=r"[^\w\-/ ]"),
    "tensorboard": Tracker("tensorboard", _tensorboard),
    "trackio": Tracker("trackio", _trackio),
}
"""By the names that `monitor.trackers` and accelerate give them."""


class TrackerSink(Sink):
    """Gives each number of each row to a tracker, and the settings once.

    The tracker is started with the first row, so that it cannot hold up the start of the run. Raises
    UserError where its package is missing.
    """

    def __init__(self, name: str, folder: Path, config: Config) -> None:
        self.name, self._how = name, TRACKERS[name]
        self._folder, self._config = folder, config
        self._redactor = Redactor(os.environ)
        self._tracker: Any = None
        if missing := missing_package(self._how.package):
            raise UserError(f"monitor.trackers: {missing}; else leave {name} out")

    def write(self, row: Mapping[str, Any]) -> None:
        """Adds the numbers of a row at its step."""
        if self._tracker is None:
            self._start(row["step"])
        numbers = {
            re.sub(self._how.forbidden, "_", name): float(value)
            for name, value in self._redactor.names(row).items()
            if name != "step" and isinstance(value, int | float)
        }
        if numbers:
            self._tracker.log(numbers, step=row["step"])

    def close(self) -> None:
        """Ends the tracker's run in order."""
        if self._tracker is not None:
            self._tracker.finish()

    def _start(self, first_step: int) -> None:
        from accelerate import PartialState
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS

        if not PartialState._shared_state:  # in a process alone; the trackers' logger insists on it
            PartialState(cpu=True)
        known = _ids(self._folder).get(self.name)
        project = self._config.monitor.wandb.project
        start = Start(self._folder, project, self._folder.resolve().name, first_step, known)
        tracker = LOGGER_TYPE_TO_CLASS[self.name](**self._how.arguments(start))
        tracker.main_process_only = False  # this is rank 0, the only one with sinks
        tracker.start()
        self._tracker = tracker
        if self._how.id is not None and (found := self._how.id(tracker.tracker)) != known:
            with _ids_change:
                ids = _ids(self._folder) | {self.name: found, "folder": str(self._folder.resolve())}
                write_json(self._folder / IDS, ids)
        if known is not None:  # it has the settings of the first start; mlflow refuses others
            return
        plain = (bool, int, float, str)
        settings = self._redactor.value(
            {
                path: value if isinstance(value, plain) else display(value, 200)
                for path, value in leaves(self._config)
            }
        )
        if self.name == "tensorboard":  # where each call would make a run of its own
            text = "".join(f"    {path}: {value}\n" for path, value in settings.items())
            tracker.tracker.add_text("settings", text, first_step)
        else:
            tracker.store_init_configuration(settings)


def tracker_sinks(config: Config, folder: Path) -> Sequence[TrackerSink]:
    """Those of `monitor.trackers`, each once. Raises UserError where a package is missing."""
    return [TrackerSink(name, folder, config) for name in dict.fromkeys(config.monitor.trackers)]


def _ids(folder: Path) -> dict[str, str]:
    """The ids of earlier starts; none in a folder that was copied or moved, which is a run of its own."""
    try:
        found = json.loads((folder / IDS).read_text())
    except (OSError, ValueError):
        return {}
    if not isinstance(found, dict) or found.get("folder") != str(folder.resolve()):
        return {}
    return {name: known for name, known in found.items() if isinstance(known, str)}
