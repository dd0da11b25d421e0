"""Where the W&B mode comes from: the setting, then WANDB_MODE, then whether there is a key."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmkit.errors import UserError
from llmkit.monitor import wandb_mode
from llmkit.monitor.wandb_mode import (
    PUBLIC_SERVER,
    Decision,
    has_credential,
    has_home,
    resolve_mode,
    server_url,
)


@pytest.mark.parametrize(
    ("setting", "variables", "decision"),
    [
        ("auto", {}, Decision("offline", "no API key found")),
        ("auto", {"WANDB_API_KEY": "k"}, Decision("online", "")),
        ("auto", {"WANDB_API_KEY": "k", "WANDB_MODE": "offline"}, Decision("offline", "")),
        ("auto", {"WANDB_API_KEY": "k", "WANDB_MODE": "dryrun"}, Decision("offline", "")),
        ("auto", {"WANDB_MODE": "disabled"}, Decision("disabled", "WANDB_MODE=disabled")),
        ("auto", {"WANDB_DISABLED": "true"}, Decision("disabled", "WANDB_DISABLED=true")),
        ("auto", {"WANDB_DISABLED": "true", "WANDB_MODE": "offline"}, Decision("offline", "")),
        ("auto", {"WANDB_DISABLED": "false"}, Decision("offline", "no API key found")),
        ("offline", {"WANDB_DISABLED": "true"}, Decision("offline", "")),
        ("offline", {"WANDB_MODE": "nonsense"}, Decision("offline", "")),
        ("auto", {"WANDB_MODE": "online"}, Decision("offline", "no API key found")),
        ("online", {"WANDB_API_KEY": "k", "WANDB_MODE": "offline"}, Decision("online", "")),
        ("online", {}, Decision("offline", "no API key found")),
        ("offline", {"WANDB_API_KEY": "k"}, Decision("offline", "")),
        ("disabled", {"WANDB_API_KEY": "k", "WANDB_MODE": "online"}, Decision("disabled", "")),
    ],
)
def test_the_mode(
    setting: str, variables: dict[str, str], decision: Decision, environment: dict[str, str]
) -> None:
    assert resolve_mode(setting, {**environment, **variables}) == decision


def test_a_mode_that_does_not_exist_is_refused_by_name(environment: dict[str, str]) -> None:
    with pytest.raises(UserError, match="WANDB_MODE=of: allowed are"):
        resolve_mode("auto", {**environment, "WANDB_MODE": "of"})


def test_without_the_package_there_is_no_mirror(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wandb_mode, "find_spec", lambda name: None)
    assert resolve_mode("online", environment) == Decision("disabled", "wandb is not installed")


def test_a_netrc_entry_counts_only_for_its_own_server(environment: dict[str, str]) -> None:
    netrc = Path(environment["HOME"], ".netrc")
    netrc.write_text("machine wandb.example login user password secret\n")
    netrc.chmod(0o600)
    assert not has_credential(environment)
    assert has_credential({**environment, "WANDB_BASE_URL": "https://wandb.example/"})


def test_a_netrc_that_cannot_be_read_counts_as_none(environment: dict[str, str]) -> None:
    Path(environment["HOME"], ".netrc").write_text("machine api.wandb.ai nonsense")
    assert not has_credential(environment)
    assert not has_credential({**environment, "NETRC": "/missing"})


def test_the_server_is_the_one_of_the_environment_or_of_the_login_or_the_public_one(
    environment: dict[str, str],
) -> None:
    assert server_url(environment) == PUBLIC_SERVER
    settings = Path(environment["HOME"], ".config", "wandb", "settings")
    settings.parent.mkdir(parents=True)
    settings.write_text("[default]\nbase_url = https://stored.example\n")
    assert server_url(environment) == "https://stored.example"
    assert server_url({**environment, "WANDB_BASE_URL": "https://set.example/"}) == "https://set.example"
    settings.write_text("no ini file")
    assert server_url(environment) == PUBLIC_SERVER


def test_without_a_home_nothing_is_found_there(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As in a container whose user id is in no passwd file."""
    homeless = {name: value for name, value in environment.items() if name != "HOME"}
    monkeypatch.delenv("HOME")
    monkeypatch.setattr("os.getuid", lambda: 45678)
    assert has_home(environment) and not has_home(homeless)
    for more in ({}, {"NETRC": "~/.netrc"}, {"WANDB_CONFIG_DIR": "~/.wandb"}, {"NETRC": "~nobody-here/x"}):
        assert resolve_mode("auto", {**homeless, **more}) == Decision("offline", "no API key found")
        assert server_url({**homeless, **more}) == PUBLIC_SERVER


def test_places_that_may_not_be_seen_count_as_empty(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("builtins.open", refuse)
    assert resolve_mode("auto", environment) == Decision("offline", "no API key found")
    broken = {**environment, "WANDB_BASE_URL": "https://[broken"}
    assert resolve_mode("auto", broken) == Decision("offline", "no API key found")
