"""Reading parts of an object of S3, or of a store that speaks its language.

Not by `cat_file` of s3fs: that tries again by itself, from the start and without telling, and does not say
whether the answer was still of the same object.
"""

from __future__ import annotations

from typing import Any

from llmkit.data.sources.attempts import ChangedError, attempt, status_of
from llmkit.data.sources.heads import Head, compare, head_of_info, head_of_part

SCHEMES = ("s3", "s3a")
_CHUNK_BYTES = 64 << 10


def options(stall_seconds: float) -> dict[str, Any]:
    """Arguments of s3fs: its own time limits, and no attempts but the first of its library."""
    limits = {"connect_timeout": stall_seconds, "read_timeout": stall_seconds}
    return {"config_kwargs": {**limits, "retries": {"total_max_attempts": 1}}}


class ObjectFile:
    """An object of S3."""

    def __init__(self, filesystem: Any, path: str) -> None:
        self._filesystem, self._path = filesystem, path

    def head(self) -> Head:
        """What the store tells, or has told when it was listed."""
        return attempt(lambda: head_of_info(self._filesystem.info(self._path)))

    def get(self, start: int, count: int, expected: Head) -> bytes:
        """Bytes from `start` on, fewer if the connection broke; ChangedError if it is another object."""
        from fsspec.asyn import sync

        return attempt(lambda: sync(self._filesystem.loop, self._ask, start, count, expected))

    async def _ask(self, start: int, count: int, expected: Head) -> bytes:
        bucket, key, _ = self._filesystem.split_path(self._path)
        part = f"bytes={start}-{start + count - 1}"
        try:
            answer = await self._filesystem._call_s3("get_object", Bucket=bucket, Key=key, Range=part)
        except OSError as error:
            if status_of(error) == 416:
                raise ChangedError(f"it had {expected.size} bytes and ends before byte {start}") from error
            raise
        status = answer["ResponseMetadata"]["HTTPStatusCode"]
        headers = {"ETag": answer.get("ETag", ""), "Content-Range": answer.get("ContentRange", "")}
        received = bytearray()
        try:
            compare(expected, head_of_part(status, "", headers, start))
            while len(received) < count and (chunk := await answer["Body"].read(_CHUNK_BYTES)):
                received += chunk
        except ChangedError:
            raise
        except Exception:
            if not received:
                raise
        finally:
            answer["Body"].close()  # what is left of the answer is not waited for
        return bytes(received[:count])
