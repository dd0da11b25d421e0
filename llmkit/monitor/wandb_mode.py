"""Whether a run is mirrored to Weights & Biases, and to which server."""

from __future__ import annotations

import configparser
import netrc
import os
from collections.abc import Mapping
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, NamedTuple
from urllib.parse import urlsplit

from llmkit.errors import UserError

Mode = Literal["online", "offline", "disabled"]

PUBLIC_SERVER = "https://api.wandb.ai"
MODES: dict[str, Mode] = {  # what WANDB_MODE may say, with its older words
    "online": "online",
    "run": "online",
    "offline": "offline",
    "dryrun": "offline",
    "disabled": "disabled",
}
TRUE = ("true", "1", "yes", "on")
"""Values of WANDB_DISABLED that disable, as for transformers."""


class Decision(NamedTuple):
    """The mode, and why it is not simply the one that was asked for (empty if it is)."""

    mode: Mode
    reason: str


def resolve_mode(setting: str, environment: Mapping[str, str]) -> Decision:
    """The mode of a run from its `monitor.wandb.mode` and the environment.

    `auto` follows WANDB_MODE, then WANDB_DISABLED; without them, online where a credential is found, else
    offline. Online without a credential becomes offline: a missing key must not cost the run its W&B data.
    Raises UserError for a WANDB_MODE that does not exist.
    """
    mode, reason = MODES.get(setting), ""
    if mode is None and (found := environment_mode(environment)):
        mode, reason = found
    if mode == "disabled":
        return Decision("disabled", reason)
    if not _is_installed():
        return Decision("disabled", "wandb is not installed")
    if mode != "offline" and not has_credential(environment):
        return Decision("offline", "no API key found")
    return Decision(mode or "online", "")


def environment_mode(environment: Mapping[str, str]) -> tuple[Mode, str] | None:
    """The mode that the environment asks for, and the variable with its value; None where it asks for none.

    Raises UserError for a WANDB_MODE that does not exist.
    """
    if asked := environment.get("WANDB_MODE"):
        mode = MODES.get(asked.lower())
        if mode is None:
            raise UserError(f"WANDB_MODE={asked}: allowed are online, offline and disabled")
        return mode, f"WANDB_MODE={asked}"
    if (asked := environment.get("WANDB_DISABLED", "")).lower() in TRUE:
        return "disabled", f"WANDB_DISABLED={asked}"
    return None


def server_url(environment: Mapping[str, str]) -> str:
    """The W&B server: WANDB_BASE_URL, else the one that `wandb login --host` stored, else the public.

    Without user and password: it is shown and kept.
    """
    url = environment.get("WANDB_BASE_URL") or _stored(environment, "base_url") or PUBLIC_SERVER
    with suppress(ValueError):  # no URL: nothing will be there
        parts = urlsplit(url)
        url = parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()
    return url.rstrip("/")


def has_credential(environment: Mapping[str, str]) -> bool:
    """Whether wandb will find a key: in the environment, its settings file or the netrc file.

    Only its presence is looked at; the key itself is read by wandb alone.
    """
    if any(environment.get(name) for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE")):
        return True
    return bool(_stored(environment, "api_key")) or _netrc_knows(server_url(environment), environment)


def has_home(environment: Mapping[str, str]) -> bool:
    """Whether ~ stands for a folder; not so for a user id in a container that no passwd file knows."""
    return str(_expanded("~/", environment)) != "~"


def _is_installed() -> bool:
    found = find_spec("wandb")
    return found is not None and found.origin is not None  # a mere folder called wandb has no origin


def _stored(environment: Mapping[str, str], name: str) -> str | None:
    folder = _expanded(environment.get("WANDB_CONFIG_DIR") or "~/.config/wandb", environment)
    parser = configparser.ConfigParser(interpolation=None)
    try:
        parser.read(folder / "settings", encoding="utf-8")
        return parser.get("default", name, fallback=None)
    except (configparser.Error, ValueError, OSError):
        return None


def _netrc_knows(server: str, environment: Mapping[str, str]) -> bool:
    named = environment.get("NETRC")
    for path in [named] if named else ["~/.netrc", "~/_netrc"]:
        try:
            host = urlsplit(server).hostname or ""
            if netrc.netrc(_expanded(path, environment)).authenticators(host):
                return True
        except (netrc.NetrcParseError, ValueError, OSError):
            continue
    return False


def _expanded(path: str, environment: Mapping[str, str]) -> Path:
    """The path with its ~ replaced; as it is where there is no home, as for a free user id in a container."""
    if path.startswith("~/") and environment.get("HOME"):
        return Path(environment["HOME"], path[2:])
    return Path(os.path.expanduser(path))  # Path.expanduser raises where it finds none
