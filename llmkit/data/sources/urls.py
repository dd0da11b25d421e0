"""Paths that name remote files, and how messages may show them."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_URL_IN_TEXT = re.compile(_URL.pattern + r"\S+")


def is_url(path: str) -> bool:
    """Whether a path names a remote file."""
    return _URL.match(path) is not None


def shown(path: str) -> str:
    """A path as messages may have it: of a URL without user, password and query, which may be secrets."""
    if "::" in path:  # fsspec's way to write a file in a remote archive
        return "::".join(map(shown, path.split("::")))
    if not is_url(path):
        return path
    try:
        parts = urlsplit(path)
    except ValueError:  # no valid host: what stands before an @ cannot be told from what comes after it
        return f"{path.partition(':')[0]}://..." if "@" in path else re.split("[?#]", path)[0]
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def without_secrets(text: str) -> str:
    """A text with each URL in it as messages may have it."""
    return _URL_IN_TEXT.sub(lambda match: shown(match[0]), text)
