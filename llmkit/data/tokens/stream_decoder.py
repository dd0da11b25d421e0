"""Text of ids that come one by one."""

from __future__ import annotations

import codecs
from collections.abc import Sequence

from tokenizers import Tokenizer as HFTokenizer


class StreamDecoder:
    """Gives out a character once all its bytes are there.

    bytes_of_ids: bytes of each id of a byte-level vocabulary; None for others, which `library` decodes.
    before: ids of the text that is continued: some vocabularies put a space only before what goes on.
    """

    def __init__(
        self, library: HFTokenizer, bytes_of_ids: dict[int, bytes] | None, before: Sequence[int] = ()
    ) -> None:
        self._library, self._bytes = library, bytes_of_ids
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._given = list(before[-4:])  # the ids before the waiting ones: a piece's text may depend on them
        self._waiting: list[int] = []

    def push(self, token: int) -> str:
        """The text that `token` completes; may be empty."""
        if self._bytes is not None:
            return self._utf8.decode(self._bytes.get(int(token), b"\xff"))
        self._waiting.append(int(token))
        text = self._new_text()
        # A character has at most four bytes: what is no character by then never will be one.
        if text.endswith("\ufffd") and len(self._waiting) < 4:
            return ""
        self._given, self._waiting = self._waiting, []
        return text

    def finish(self) -> str:
        """What is left at the end: U+FFFD where a character was cut."""
        return self._utf8.decode(b"", final=True) if self._bytes is not None else self._new_text()

    def _new_text(self) -> str:
        before = self._library.decode(self._given, skip_special_tokens=False)
        return self._library.decode(self._given + self._waiting, skip_special_tokens=False)[len(before) :]
