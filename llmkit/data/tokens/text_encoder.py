"""Ids of text: by Hugging Face's library, or faster where that was found to give the same ids."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import Any

import numpy as np
from tokenizers import Tokenizer as Encoder

from llmkit.config.schema import BYTES_VOCABULARY
from llmkit.cores import available_cores
from llmkit.data.tokens.fast import BytesEncoder, FastEncoder, NotFastError, build_fast_encoder, ids_are_bytes
from llmkit.data.tokens.hard_texts import HARD_TEXTS
from llmkit.data.tokens.marked import Span
from llmkit.data.tokens.parts import Part, PartEncoder, cut
from llmkit.data.tokens.tokenizer_json import continuing, plain
from llmkit.errors import UserError

SPEED_UP_AFTER = 1 << 20
"""Characters that are encoded before the fast encoder is set up: that takes about a second, in which a run
that tokenizes its text would wait for its first batch."""
SPEED_UP_SAMPLE = 1 << 18
"""Characters of the text at hand on which both encoders are compared."""


class TextEncoder:
    """Encodes texts, and texts in parts.

    spec: a tokenizer.json. end_of_text, origin, control_tokens_in_text: as of `Tokenizer`.

    library: Hugging Face's encoder. added: its added tokens by id. control_tokens: text and id of the special
    ones. fast: the fast encoder where it is at work; slow_reason: why it is not, None where it is.
    """

    def __init__(
        self, spec: dict[str, Any], end_of_text: str, origin: str, control_tokens_in_text: bool
    ) -> None:
        self._spec, self._end_of_text, self._origin = spec, end_of_text, origin
        self._control_tokens_in_text = control_tokens_in_text
        self.library = self._new_encoder()
        self.added = self.library.get_added_tokens_decoder()
        self.control_tokens = {token.content: number for number, token in self.added.items() if token.special}
        self.fast: FastEncoder | None = None
        self.slow_reason: str | None = "not tried yet"
        self.encoded = 0  # characters, until the fast encoder is set up
        is_small = self.library.get_vocab_size(with_added_tokens=True) == BYTES_VOCABULARY
        if is_small and ids_are_bytes(spec, self.library.get_vocab(with_added_tokens=True), end_of_text):
            self.fast, self.slow_reason = BytesEncoder(), None

    def encode_batch(self, texts: Sequence[str], threads: bool = True) -> list[np.ndarray]:
        """See `Tokenizer.encode_batch`."""
        self._count(texts)
        workers = min(len(texts), available_cores()) if threads else 1
        if self.fast is None or workers <= 1:
            return self._encode_share(texts, threads)
        found: list[np.ndarray] = [np.empty(0, dtype=np.int32)] * len(texts)
        with ThreadPoolExecutor(workers) as pool:
            shares = [texts[i::workers] for i in range(workers)]
            for i, ids in enumerate(pool.map(lambda share: self._encode_share(share, False), shares)):
                found[i::workers] = ids
        return found

    def speed_up(self, texts: Sequence[str] = ()) -> None:
        """Set up the fast encoder, if it gives the same ids for hard strings and for `texts`.

        Happens by itself after some text; `slow_reason` tells the outcome.
        """
        self.encoded = SPEED_UP_AFTER
        if self.fast is not None:
            return
        sample, size = [], 0
        for text in texts:
            if size < SPEED_UP_SAMPLE:
                sample.append(text)
                size += len(text)
        try:
            fast = build_fast_encoder(self._spec)
            comparable = [text for text in (*HARD_TEXTS, *sample) if not self._holds_added_token(text)]
            fast.check(comparable, self.encode_slowly)
        except NotFastError as error:
            self.slow_reason = str(error)
        else:
            self.fast, self.slow_reason = fast, None

    def encode_parts(self, text: str, cuts: Sequence[int], controls: Sequence[Span]) -> list[np.ndarray]:
        """See `Tokenizer.encode_parts`."""
        self._count([text])
        parts = cut(text, cuts, controls)
        quick = self._encode_parts_fast(text, parts) if self.fast is not None else None
        if quick is not None:
            return quick
        ends = {control[1]: control for control in controls}
        try:
            return [self._parts.encode(text, part, ends.get(part[0])) for part in parts]
        except (UnicodeEncodeError, TypeError) as error:
            raise _no_utf8() from error

    def _new_encoder(self, goes_on: bool = False) -> Encoder:
        spec = continuing(self._spec) if goes_on else self._spec
        try:
            encoder = Encoder.from_str(json.dumps(plain(spec, self._end_of_text)))
        except Exception as error:  # the library raises bare Exception
            raise UserError(f"{self._origin}: is not a usable tokenizer.json ({error})") from error
        encoder.encode_special_tokens = not self._control_tokens_in_text
        return encoder

    @property
    def _in_text(self) -> list[str]:
        """What the library takes out of a text before its model sees it."""
        return [t.content for t in self.added.values() if self._control_tokens_in_text or not t.special]

    @cached_property
    def _added_token(self) -> re.Pattern[str] | None:
        """Finds these tokens; None if there are none."""
        return re.compile("|".join(map(re.escape, self._in_text))) if self._in_text else None

    def _holds_added_token(self, text: str) -> bool:
        return self._added_token is not None and self._added_token.search(text) is not None

    @cached_property
    def _parts(self) -> PartEncoder:
        return PartEncoder(self._new_encoder, self.added, self._in_text)

    def _count(self, texts: Sequence[str]) -> None:
        """Set up the fast encoder once that much is encoded that it pays."""
        if self.fast is None and self.encoded < SPEED_UP_AFTER:
            self.encoded += sum(map(len, texts))
            if self.encoded >= SPEED_UP_AFTER:
                self.speed_up(texts)

    def _encode_share(self, texts: Sequence[str], threads: bool) -> list[np.ndarray]:
        if self.fast is None:
            return self.encode_slowly(texts) if threads else [self.encode_slowly([t])[0] for t in texts]
        found = zip(texts, self._quick(texts), strict=True)
        return [self.encode_slowly([text])[0] if ids is None else ids for text, ids in found]

    def _quick(self, texts: Sequence[str]) -> list[np.ndarray | None]:
        """Ids of each text by the fast encoder; None where it cannot have it."""
        assert self.fast is not None
        plain = [text for text in texts if not self._holds_added_token(text)]
        try:
            ids = self.fast.encode(plain)
        except UnicodeEncodeError as error:
            raise _no_utf8() from error
        if len(plain) == len(texts):
            return ids
        rest = iter(ids)
        return [None if self._holds_added_token(text) else next(rest) for text in texts]

    def encode_slowly(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Ids of each text by the library."""
        try:
            encoded = self.library.encode_batch_fast(list(texts), add_special_tokens=False)
        except (UnicodeEncodeError, TypeError) as error:
            raise _no_utf8() from error
        return [np.array(one.ids, dtype=np.int32) for one in encoded]

    def _encode_parts_fast(self, text: str, parts: Sequence[Part]) -> list[np.ndarray] | None:
        """Ids of each part by the fast encoder; None where it cannot have them."""
        has_controls = any(controls for _, _, controls in parts)
        added = self.added.values()
        if has_controls and any(token.lstrip or token.rstrip or token.single_word for token in added):
            return None
        texts: list[str] = []  # those of a part stand before, between and after its control tokens
        for start, end, controls in parts:
            bounds = [start, *(place for control in controls for place in control), end]
            texts += [text[a:b] for a, b in zip(bounds[::2], bounds[1::2])]
        quick = iter(self._quick(texts))
        found: list[np.ndarray] = []
        for _, _, controls in parts:
            ids = [next(quick)]
            for start, end in controls:
                ids += [np.array([self.control_tokens[text[start:end]]], dtype=np.int32), next(quick)]
            if any(one is None for one in ids):
                return None
            found.append(np.concatenate(ids))  # type: ignore[arg-type]
        return found


def _no_utf8() -> UserError:
    return UserError("the text holds a lone surrogate, which no UTF-8 can hold")
