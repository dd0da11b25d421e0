"""Old names, until all callers have the new ones."""

from llmkit.data.sources.splits import Split as Unit  # noqa: F401
from llmkit.data.sources.splits import split_files as cut_into_units  # noqa: F401
