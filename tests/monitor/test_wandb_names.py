"""W&B's own variables: taken where the settings leave a choice, else named with the setting that wins."""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import wandb

from llmkit.config.monitor_section import Wandb
from llmkit.errors import UserError
from llmkit.monitor import wandb_open
from llmkit.monitor.wandb_environment import PASSED_OVER, SETTINGS
from llmkit.monitor.wandb_names import Names, check_environment, resolve_names
from llmkit.monitor.wandb_session import Timeouts

VARIABLES = {
    "WANDB_PROJECT": "theirs",
    "WANDB_ENTITY": "team",
    "WANDB_NAME": "shown",
    "WANDB_TAGS": "a, b",
    "WANDB_RUN_GROUP": "sweep",
    "WANDB_NOTES": "a note",
    "WANDB_JOB_TYPE": "train",
    "WANDB_RUN_ID": "abc123",
}
GIVEN = {
    "monitor.wandb.project": "a.yaml:3",
    "monitor.wandb.entity": "a.yaml:4",
    "monitor.wandb.mode": "a.yaml:5",
    "monitor.wandb.tags": "a.yaml:6",
    "monitor.wandb.name": "a.yaml:7",
}


def test_what_the_settings_leave_open_the_environment_fills() -> None:
    assert resolve_names(Wandb(), {}, VARIABLES) == Names(
        "theirs", "team", "shown", ("a", "b"), "sweep", "a note", "train", "abc123"
    )
    assert resolve_names(Wandb(), {}, {}) == Names("llmkit")


def test_a_setting_wins_and_the_user_is_told_of_both_places() -> None:
    ours = Wandb(project="ours", entity="us", mode="online", tags=["c"], name="mine")
    modes = {"WANDB_MODE": "offline", "WANDB_DISABLED": "true"}
    names = resolve_names(ours, GIVEN, {**VARIABLES, **modes})
    assert (names.project, names.entity, names.tags, names.group) == ("ours", "us", ("c",), "sweep")
    assert names.remarks == (
        'WANDB_MODE="offline" is passed over: monitor.wandb.mode is online (a.yaml:5)',
        'WANDB_DISABLED="true" is passed over: monitor.wandb.mode is online (a.yaml:5)',
        'WANDB_PROJECT="theirs" is passed over: monitor.wandb.project is ours (a.yaml:3)',
        'WANDB_ENTITY="team" is passed over: monitor.wandb.entity is us (a.yaml:4)',
        'WANDB_NAME="shown" is passed over: monitor.wandb.name is mine (a.yaml:7)',
        'WANDB_TAGS="a, b" is passed over: monitor.wandb.tags is c (a.yaml:6)',
    )


def test_the_same_said_twice_is_no_contradiction() -> None:
    ours = Wandb(project="theirs", entity="team", mode="offline", tags=["a", "b"], name="shown")
    same = {
        **VARIABLES, "WANDB_MODE": "dryrun", "WANDB_DISABLED": "false", "WANDB_CONSOLE": "off",
        "WANDB_TAGS": "a,b",
    }  # fmt: skip
    assert resolve_names(ours, GIVEN, same).remarks == ()
    offline = resolve_names(Wandb(), {"monitor.wandb.mode": "a.yaml:5"}, {"WANDB_MODE": "offline"})
    assert offline.remarks == ()


def test_what_holds_reaches_wandb_as_it_reads_it() -> None:
    names = resolve_names(Wandb(), {}, VARIABLES)
    settings = wandb.Settings()
    settings.update_from_env_vars({k: v for k, v in names.variables("the-id").items() if v is not None})
    assert (settings.project, settings.entity, settings.run_name) == ("theirs", "team", "shown")
    assert (settings.run_id, settings.run_group, settings.run_job_type) == ("the-id", "sweep", "train")
    assert (list(settings.run_tags or ()), settings.run_notes) == (["a", "b"], "a note")


@pytest.mark.parametrize(
    "wrong",
    [
        {"WANDB_BASE_URL": "wandb.example.com"},
        {"WANDB_BASE_URL": "http://["},
        {"WANDB_PROJECT": "a/b"},
        {"WANDB_PROJECT": "a" * 129},
        {"WANDB_RUN_ID": "a b"},
        {"WANDB_TAGS": "a," + "b" * 65},
    ],
)
def test_a_name_that_wandb_refuses_is_refused_before_any_work(
    wrong: dict[str, str], environment: dict[str, str]
) -> None:
    with pytest.raises(UserError, match=next(iter(wrong))):
        check_environment(Wandb(), {}, {**environment, **wrong}, Path("run"))
    check_environment(Wandb(mode="disabled"), {}, {**environment, **wrong}, Path("run"))
    check_environment(Wandb(), {}, {**environment, "WANDB_BASE_URL": "http://[::1]:8080"}, Path("run"))
    check_environment(Wandb(project="ours"), GIVEN, {**environment, "WANDB_PROJECT": "a/b"}, Path("run"))


def test_a_sweep_decides_project_and_id_and_needs_a_folder_for_each_run(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    sweep = {**environment, "WANDB_SWEEP_ID": "s", "WANDB_PROJECT": "of-the-sweep", "WANDB_RUN_ID": "first"}
    names = resolve_names(Wandb(project="ours"), GIVEN, sweep)
    assert names.project == "of-the-sweep"
    assert names.remarks == (
        'monitor.wandb.project = ours (a.yaml:3) is passed over: that of the sweep is "of-the-sweep"',
    )
    (tmp_path / "wandb").mkdir()
    (tmp_path / "wandb" / "run_id").write_text("first\n")
    check_environment(Wandb(), {}, sweep, tmp_path)
    with pytest.raises(UserError, match=r"another W&B run, first; .*run\.name=sweep-\$WANDB_RUN_ID"):
        check_environment(Wandb(), {}, {**sweep, "WANDB_RUN_ID": "second"}, tmp_path)
    check_environment(Wandb(), {}, {**environment, "WANDB_RUN_ID": "second"}, tmp_path)


def test_whatever_the_mirror_fixes_has_its_variable_in_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of wandb's variables, those whose setting we give to `wandb.init` would be ignored without a word."""
    given: dict[str, Any] = {}

    def init(settings: dict[str, Any], **arguments: Any) -> Any:
        given.update(arguments, **settings)
        return SimpleNamespace(define_metric=lambda *_, **__: None)

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init, Settings=dict))
    session: dict[str, Any] = dict.fromkeys(("run_id", "trainer", *Names._fields), "x")
    session |= {"settings": {}, "manifest": {}, "forked_from": None, "timeouts": Timeouts()._asdict()}
    wandb_open.init(Path("run"), session, "offline")
    renamed = {"dir": "root_dir", "id": "run_id"} | {
        name: f"run_{name}" for name in ("name", "tags", "group", "notes", "job_type")
    }
    fixed = {renamed.get(name, name) for name in given} - {"config", "stop_fn"}
    allowed = {"WANDB_RESUME": "allow", "WANDB_MODE": "offline", "WANDB_CONSOLE": "off"}
    for variable in (*SETTINGS, *PASSED_OVER, "WANDB_RUN_ID"):
        settings = wandb.Settings()
        with suppress(ValueError):  # variables that say how to start wandb take no number
            settings.update_from_env_vars({variable: allowed.get(variable, "1")})
        fixed -= settings.model_fields_set
    assert fixed == set()
