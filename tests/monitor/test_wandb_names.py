"""W&B's own variables: taken where the settings leave a choice, else named with the setting that wins."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import wandb

from llmkit.config.schema import Wandb
from llmkit.errors import UserError
from llmkit.monitor import wandb_sidecar
from llmkit.monitor.wandb_mirror import Mirror, Timeouts
from llmkit.monitor.wandb_names import PASSED_OVER, SETTINGS, check_environment, resolve_names

VARIABLES = {
    "WANDB_PROJECT": "theirs",
    "WANDB_ENTITY": "team",
    "WANDB_NAME": "shown",
    "WANDB_RUN_ID": "abc123",
}
GIVEN = {
    "monitor.wandb.project": "a.yaml:3",
    "monitor.wandb.entity": "a.yaml:4",
    "monitor.wandb.mode": "a.yaml:5",
}


def test_what_the_settings_leave_open_the_environment_fills() -> None:
    assert resolve_names(Wandb(), {}, VARIABLES) == ("theirs", "team", "shown", "abc123", ())
    assert resolve_names(Wandb(), {}, {}) == ("llmkit", None, None, None, ())


def test_a_setting_wins_and_the_user_is_told_of_both_places() -> None:
    ours = Wandb(project="ours", entity="us", mode="online")
    modes = {"WANDB_MODE": "offline", "WANDB_DISABLED": "true"}
    names = resolve_names(ours, GIVEN, {**VARIABLES, **modes})
    assert names[:2] == ("ours", "us")
    assert names.notes == (
        'WANDB_MODE="offline" is passed over: monitor.wandb.mode is online (a.yaml:5)',
        'WANDB_DISABLED="true" is passed over: monitor.wandb.mode is online (a.yaml:5)',
        'WANDB_PROJECT="theirs" is passed over: monitor.wandb.project is ours (a.yaml:3)',
        'WANDB_ENTITY="team" is passed over: monitor.wandb.entity is us (a.yaml:4)',
    )


def test_the_same_said_twice_is_no_contradiction() -> None:
    ours = Wandb(project="theirs", entity="team", mode="offline")
    same = {**VARIABLES, "WANDB_MODE": "dryrun", "WANDB_DISABLED": "false", "WANDB_CONSOLE": "off"}
    assert resolve_names(ours, GIVEN, same).notes == ()
    assert resolve_names(Wandb(), {"monitor.wandb.mode": "a.yaml:5"}, {"WANDB_MODE": "offline"}).notes == ()


def test_what_the_mirror_decides_itself_is_told() -> None:
    (note,) = resolve_names(Wandb(), {}, {"WANDB_DIR": "/scratch"}).notes
    assert note == 'WANDB_DIR="/scratch" is passed over: the files of W&B lie in the run folder'


@pytest.mark.parametrize(
    "wrong", [{"WANDB_PROJECT": "a/b"}, {"WANDB_PROJECT": "a" * 129}, {"WANDB_RUN_ID": "a b"}]
)
def test_a_name_that_wandb_refuses_is_refused_before_any_work(
    wrong: dict[str, str], environment: dict[str, str]
) -> None:
    with pytest.raises(UserError, match=next(iter(wrong))):
        check_environment(Wandb(), {}, {**environment, **wrong})
    check_environment(Wandb(mode="disabled"), {}, {**environment, **wrong})
    check_environment(Wandb(project="ours"), GIVEN, {**environment, "WANDB_PROJECT": "a/b"})


def test_whatever_the_mirror_fixes_has_its_variable_in_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of wandb's variables, those whose setting we give to `wandb.init` would be ignored without a word."""
    given: dict[str, Any] = {}

    def init(settings: dict[str, Any], **arguments: Any) -> Any:
        given.update(arguments, **settings)
        return SimpleNamespace(define_metric=lambda *_, **__: None)

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init, Settings=dict))
    session = dict.fromkeys(("project", "entity", "name", "run_id", "config", "trainer"), "x")
    wandb_sidecar.init(Path("run"), {**session, "timeouts": Timeouts()._asdict()}, "offline")
    renamed = {"dir": "root_dir", "name": "run_name", "id": "run_id"}
    fixed = {renamed.get(name, name) for name in given if not name.startswith("x_")} - {"config", "silent"}
    ours = {*SETTINGS, *PASSED_OVER, "WANDB_NAME", "WANDB_RUN_ID"}
    allowed = {"WANDB_RESUME": "allow", "WANDB_MODE": "offline", "WANDB_CONSOLE": "off"}
    for variable in ours:
        settings = wandb.Settings()
        settings.update_from_env_vars({variable: allowed.get(variable, "1")})
        fixed -= settings.model_fields_set
    assert fixed == set()


def test_what_the_mirror_leaves_to_wandb_reaches_it() -> None:
    settings = wandb.Settings()
    settings.update_from_env_vars(
        {"WANDB_TAGS": "a,b", "WANDB_RUN_GROUP": "sweep", "WANDB_JOB_TYPE": "train"}
    )
    assert (list(settings.run_tags or ()), settings.run_group, settings.run_job_type) == (
        ["a", "b"],
        "sweep",
        "train",
    )


def test_the_id_of_the_environment_is_that_of_a_new_run_alone(
    tmp_path: Path, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llmkit.monitor.wandb_mirror._start_process", lambda *_: None)
    first = Mirror.start(tmp_path, Wandb(), {}, environment={**environment, "WANDB_RUN_ID": "mine"})
    assert (tmp_path / "wandb" / "run_id").read_text() == "mine\n"
    assert "passed over" not in first.message
    later = Mirror.start(tmp_path, Wandb(), {}, environment={**environment, "WANDB_RUN_ID": "other"})
    assert later.message.endswith("\nW&B: WANDB_RUN_ID=other is passed over: the run has the id mine")
    assert (tmp_path / "wandb" / "run_id").read_text() == "mine\n"


def test_a_copied_run_folder_is_a_wandb_run_of_its_own_and_a_moved_one_is_not(
    tmp_path: Path, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def run_id(folder: Path) -> str:
        return (folder / "wandb" / "run_id").read_text()

    def start(folder: Path) -> str:
        message = Mirror.start(folder, Wandb(), {}, environment=environment).message
        (folder / "wandb" / "mirror.json").write_text("how far it came")
        return message

    monkeypatch.setattr("llmkit.monitor.wandb_mirror._start_process", lambda *_: None)
    first, moved, copy = (tmp_path / name for name in ("first", "moved", "copy"))
    first.mkdir()
    start(first)
    known = run_id(first)
    first.rename(moved)
    assert "copy" not in start(moved)
    assert run_id(moved) == known

    shutil.copytree(moved, copy)
    started = Mirror.start(copy, Wandb(), {}, environment=environment)
    assert not (copy / "wandb" / "mirror.json").exists()
    assert run_id(copy) != known == run_id(moved)
    told = f"W&B: this folder is a copy of {moved}: it is a run of its own, {run_id(copy).strip()}"
    assert started.message.endswith(told)
    assert f"wandb sync {copy}/wandb/offline-run-*-{run_id(copy).strip()}\n" in started.message
    assert "copy of" not in start(copy)
    assert "copy of" not in start(moved)
