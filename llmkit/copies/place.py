"""Where the copies of a run lie."""

from __future__ import annotations

from llmkit.config.mistakes import access_in_url
from llmkit.config.schema import Config
from llmkit.data.sources.urls import is_url, redact_url
from llmkit.errors import UserError


def url_of(config: Config) -> str | None:
    """The URL of a run's copies, by `checkpoint.copy_to`; None where it has none."""
    base = config.checkpoint.copy_to
    return None if base is None else beneath(base, config.run.name)


def beneath(base: str, name: str) -> str:
    """The URL of the copies of a run of this name."""
    return f"{base.rstrip('/')}/{name}"


def checked(url: str, what: str) -> str:
    """A URL of the command line. what: names it. Raises UserError where copies cannot lie there."""
    if access := access_in_url(url):
        raise UserError(f"{what} has {access} in it; keys come from the environment")
    if not is_url(url) or set("?#") & set(url):
        such = "such as s3://bucket/runs, https://host/runs or file:///mnt/runs"
        raise UserError(f"{what} {redact_url(url)[:200]}: must be a URL without ? and #, {such}")
    return url
