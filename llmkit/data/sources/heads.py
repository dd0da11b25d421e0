"""Old names, until all callers have the new ones."""

from llmkit.data.sources.remote import FileStat as Head  # noqa: F401
