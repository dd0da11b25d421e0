"""Old names, until all callers have the new ones."""

from llmkit.data.sources.files import File as File
from llmkit.data.sources.files import is_remote as is_remote
from llmkit.data.sources.files import list_files as list_files
from llmkit.data.sources.files import stat_files as examine  # noqa: F401
