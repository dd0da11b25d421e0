"""Mistakes in a configuration: collected one by one, reported all at once."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from urllib.parse import unquote

from llmkit.errors import UserError

SHOWN = 30
"""More mistakes than this are counted, not shown."""

COMMAND_LINE = "command line"
"""Begins the location of every override."""

NOT_SHOWN = "... (not shown)"
"""Stands for the rest of an override that may hold a secret."""

UTF8_LOCALE = "set LC_ALL=C.UTF-8 (or PYTHONUTF8=1) in the environment"
"""What helps where a process takes file names and arguments to be of another encoding."""

NO_STAGE_NAMED = "with a file that names no ZeRO stage (launch/ddp.yaml), or by torchrun"
"""How a run is launched that llmkit's own engine is to train at ZeRO stage 1 or 2."""

_SECRET_KEY = re.compile(
    r"(^|[_-])(api|access|auth|private|secret|wandb|hf|hub|huggingface|github)[_-]?(key|token)$"
    r"|^(key|token)$|(^|[_-])(secret|password|passwd|credentials?)$|apikey"
)
SECRET_VALUE = re.compile(
    r"[0-9a-f]{40}|(hf_|sk-|wandb_|gh[opusr]_|github_pat_|glpat-|xox[abp]-|local-)[A-Za-z0-9_-]{12,}"
    r"|(?-i:(AKIA|ASIA)[0-9A-Z]{16}|eyJ[A-Za-z0-9_-]{12,}(\.[A-Za-z0-9_-]*)*)",
    re.IGNORECASE,
)
"""What looks like a key of W&B, Hugging Face, GitHub, GitLab, Slack, AWS, or a JSON web token."""

_URL = re.compile(r"(?<=[a-z0-9+.-])://(?P<host>[^/?#]*)[^?#]*(?P<query>.*)", re.IGNORECASE)
_QUERY_SECRET = re.compile(
    r"(^|[?&;#])([^=&;#]*[_-])?(?P<name>signature|sig|token|secret|password|passwd|pwd|credentials?|auth|"
    r"authorization|(api|access|account|auth|private|secret)?[_-]?key|AWSAccessKeyId|GoogleAccessId)(=|$)",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Mistake:
    """One thing that is wrong, with what is needed to correct it.

    location: its file and line, or the command-line override.
    what: what is wrong and what is allowed, one sentence beginning with the dotted key.
    note: what the key means, or how to correct it; may be empty.
    keys: the dotted keys that it is about.
    """

    location: str
    what: str
    note: str = ""
    keys: tuple[str, ...] = ()


def error(mistakes: Iterable[Mistake], title: str) -> UserError:
    """Returns all mistakes as one error, in the order of their lines, without duplicates."""
    distinct = sorted(dict.fromkeys(mistakes), key=_position)
    count = "1 mistake" if len(distinct) == 1 else f"{len(distinct)} mistakes"
    lines = [f"{printable(title, 1000)}: {count}"]
    for mistake in distinct[:SHOWN]:
        lines.append(f"  {printable(mistake.location, 1100)}: {mistake.what}")
        if mistake.note:
            lines.append(f"      {mistake.note}")
    if len(distinct) > SHOWN:
        lines.append(f"  ... and {len(distinct) - SHOWN} more")
    return UserError("\n".join(lines))


def _position(mistake: Mistake) -> tuple[bool, str, int]:
    """Sort key: by file and line, command-line overrides last."""
    file, _, line = mistake.location.rpartition(":")
    if mistake.location.startswith(COMMAND_LINE) or not line.isdecimal():
        return mistake.location.startswith(COMMAND_LINE), mistake.location, 0
    return False, file, int(line)


def listed(names: Sequence[str], most: int = 100) -> str:
    """As in "a, b and c"; of more than `most` names as in "a, b and 7 more"."""
    *first, last = names if len(names) <= most else (*names[:most], f"{len(names) - most} more")
    return f"{', '.join(first)} and {last}" if first else last


def printable(text: str, limit: int = 200) -> str:
    """Returns `text` on one line without control characters, truncated to `limit` characters."""
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text[: limit + 1])
    return shown if len(shown) <= limit else shown[: limit - 3] + "..."


def display(value: object, limit: int = 60) -> str:
    """Returns a value as YAML would write it, truncated; what looks like a secret is not shown."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        if SECRET_VALUE.fullmatch(value):
            return "a text that looks like a key (not shown)"
        if access_in_url(value):
            return "a URL that gives access (not shown)"
        return f'"{printable(value, limit)}"'
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list | tuple):
        return printable("[" + ", ".join(display(v, limit) for v in value[:8]) + "]", limit)
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return {"inf": ".inf", "-inf": "-.inf"}.get(str(value), ".nan")
    return str(value)


def without_secrets(override: str) -> str:
    """Returns an override for messages, without its value if any word in it may be a secret."""
    key, equals, value = override.partition("=")
    smells = any(map(is_secret, re.findall(r"[\w-]+", override))) or SECRET_VALUE.search(value or key)
    if not smells and not access_in_url(override):
        return printable(override, 100)
    shown = key if equals else key[:8]
    return f"{printable(shown, 100)}{equals}{NOT_SHOWN}"


def is_secret(key: str) -> bool:
    """Whether a key's name (its last part) marks its value as a secret."""
    return _SECRET_KEY.search(key.rpartition(".")[2].lower()) is not None


def access_in_url(text: str) -> str:
    """What in the URLs of a text gives access, in words; "" if nothing does.

    It is in the words of this program alone, so that it may be shown.
    """
    for url in filter(None, map(_URL.search, re.split(r"::|\s", text))):  # :: as in zip://x::https://y
        if "@" in url["host"]:
            return "a user or password before the host"
        if found := _QUERY_SECRET.search(unquote(url["query"])):
            return f'"{found["name"].lower()}" after the path'
    return ""
