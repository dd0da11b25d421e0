"""What is sent to others, or kept where others may read it, without what gives access."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

from llmkit.config.mistakes import NOT_SHOWN, SECRET_VALUE, access_in_url, is_secret, without_secrets

SHORTEST = 8
"""Characters of a secret in the environment, at least: shorter ones are words of texts."""
_URL = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]{0,30}://)(?P<rest>[^\s\"'<>]+)")
_WORD = re.compile(r"eyJ[A-Za-z0-9_.-]{12,}|[A-Za-z0-9_-]{16,}")
_SECRET_VARIABLE = re.compile(
    r"(TOKEN|SECRET|PASSW(OR)?D|PASSPHRASE|CREDENTIALS?|_(KEY|PWD|PASS|JWT))$", re.IGNORECASE
)
_HASHES = ("revision", "commit", "digest", "hash", "sha256", "fingerprint")
"""Keys whose value may look like a key of W&B's and is none."""


class Redactor:
    """Takes out of texts: users, passwords and queries that give access in URLs, whatever looks like a key,
    and the values of secrets in `environment`.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        secrets = {
            value
            for name, value in environment.items()
            if is_secret_variable(name) and len(value) >= SHORTEST
        }
        self._secrets = sorted(secrets, key=len, reverse=True)
        self._names: dict[str, str] = {}

    def text(self, text: str) -> str:
        """`text` without any of them."""
        for secret in self._secrets:
            text = text.replace(secret, NOT_SHOWN)
        text = _URL.sub(_open_url, text)
        return _WORD.sub(lambda word: NOT_SHOWN if SECRET_VALUE.fullmatch(word[0]) else word[0], text)

    def names(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """A row with its names redacted; its values are numbers."""
        for name in row.keys() - self._names.keys():
            self._names[name] = self.text(name)
        return {self._names[name]: value for name, value in row.items()}

    def value(self, value: Any, key: str = "") -> Any:
        """A JSON value, keys of mappings included, with all its texts redacted.

        What a key that names a secret holds goes as a whole.
        """
        if is_secret(key) and value:
            return NOT_SHOWN
        if isinstance(value, str):
            return value if key in _HASHES and re.fullmatch(r"[0-9a-f]*", value) else self.text(value)
        if isinstance(value, Mapping):
            return {self.text(str(name)): self.value(item, str(name)) for name, item in value.items()}
        if isinstance(value, list | tuple):
            return [self.value(item) for item in value]
        return value


def is_secret_variable(name: str) -> bool:
    """Whether the name of an environment variable marks its value as a secret: PGPASSWORD, S3_KEY."""
    return is_secret(name) or _SECRET_VARIABLE.search(name) is not None


def without_access(error: BaseException) -> str:
    """The message of an error without what gives access: it may quote a URL, or the value of a variable."""
    return Redactor(os.environ).text(str(error))


def command_on_record(arguments: Sequence[str]) -> list[str]:
    """A command line without what gives access; that of another program, too, which uses llmkit."""
    redactor, shown, secret = Redactor(os.environ), list[str](), False
    for word in arguments:
        name = word.lstrip("-")
        dashes = word[: len(word) - len(name)]
        plain = redactor.text(dashes + without_secrets(name) if "=" in name else word)
        shown.append(NOT_SHOWN if secret else plain)
        secret = bool(dashes) and is_secret(name)  # then the next word is its value
    return shown


def _open_url(found: re.Match[str]) -> str:
    scheme, rest = found["scheme"], found["rest"]
    host, slash, path = rest.partition("/")
    if "@" in host:
        host = host.rpartition("@")[2]
    url = f"{scheme}{host}{slash}{path}"
    return re.sub(r"[?#].*", f"?{NOT_SHOWN}", url, flags=re.DOTALL) if access_in_url(url) else url
