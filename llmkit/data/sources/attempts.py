"""Old names, until all callers have the new ones."""

from llmkit.data.sources.retries import MISSING as MISSING
from llmkit.data.sources.retries import TRANSIENT as TRANSIENT
from llmkit.data.sources.retries import RequestError as FailedError  # noqa: F401
from llmkit.data.sources.retries import in_thread as in_thread
from llmkit.data.sources.retries import one_line as told  # noqa: F401
