"""Paths that are URLs, and how messages show them without secrets."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_URL_IN_TEXT = re.compile(_URL.pattern + r"\S+")


def is_url(path: str) -> bool:
    """Whether a path names a remote file."""
    return _URL.match(path) is not None


def redact_url(path: str) -> str:
    """A path for messages: a URL without user, password and query, which may be secrets.

    >>> redact_url("https://user:pass@host/a.jsonl?sig=secret")
    'https://host/a.jsonl'
    """
    if "::" in path:  # fsspec's way to write a file in a remote archive
        return "::".join(map(redact_url, path.split("::")))
    if not is_url(path):
        return path
    try:
        parts = urlsplit(path)
    except ValueError:  # no valid host: what stands before an @ cannot be told from what comes after it
        return f"{path.partition(':')[0]}://..." if "@" in path else re.split("[?#]", path)[0]
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def redact_urls(text: str) -> str:
    """A text with each URL in it redacted."""
    return _URL_IN_TEXT.sub(lambda match: redact_url(match[0]), text)
