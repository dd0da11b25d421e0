"""Text to ids: by Hugging Face's library, or by tiktoken where that is known to give the same ids."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import Any

import numpy as np
from tokenizers import Tokenizer as HFTokenizer

from llmkit.config.schema import BYTES_VOCABULARY
from llmkit.cores import available_cores
from llmkit.data.tokens.control_tokens import ControlTokenEncoder, Part, Span, cut
from llmkit.data.tokens.fast_bpe import (
    BytesEncoder,
    NotFastError,
    TiktokenEncoder,
    build_tiktoken,
    ids_are_bytes,
)
from llmkit.data.tokens.hard_texts import HARD_TEXTS
from llmkit.data.tokens.tokenizer_json import continuing, plain
from llmkit.errors import UserError

TIKTOKEN_AFTER = 1 << 20
"""Characters that are encoded before tiktoken is set up: that takes up to a second, in which a run that
tokenizes its text would wait for its first batch."""
TIKTOKEN_SAMPLE = 1 << 18
"""Characters of the text at hand on which both encoders are compared."""


class TextEncoder:
    """Encodes texts, whole or in parts, without reading a control token out of them unless asked to.

    spec: a tokenizer.json. end_of_text, origin, control_tokens_in_text: see `Tokenizer`. Raises UserError
    where the library does not take the tokenizer.json.

    vocabulary: every token, as the tokenizer.json spells it, and its id. control_tokens: text and id of the
    special ones. tiktoken_disabled_because: why the library encodes and not tiktoken; None where it does.
    """

    def __init__(
        self, spec: dict[str, Any], end_of_text: str, origin: str, control_tokens_in_text: bool
    ) -> None:
        self.end_of_text, self.origin = end_of_text, origin
        self.control_tokens_in_text = control_tokens_in_text
        self._spec = spec
        self._library = self._build_library()
        self.vocabulary: dict[str, int] = self._library.get_vocab(with_added_tokens=True)
        self._added = self._library.get_added_tokens_decoder()
        self.control_tokens = {token.content: id for id, token in self._added.items() if token.special}
        self._fast: TiktokenEncoder | BytesEncoder | None = None
        self.tiktoken_disabled_because: str | None = "not tried yet"
        self._encoded = 0  # characters, until tiktoken is set up
        if len(self.vocabulary) == BYTES_VOCABULARY and ids_are_bytes(spec, self.vocabulary, end_of_text):
            self._fast, self.tiktoken_disabled_because = BytesEncoder(), None

    def encode(self, text: str) -> np.ndarray:
        """Ids of a text, (count,) int32; raises UserError for text that has no UTF-8 form."""
        return self.encode_batch([text], threads=False)[0]

    def encode_batch(self, texts: Sequence[str], threads: bool = True) -> list[np.ndarray]:
        """Ids of several texts, (count,) int32 each; `threads` spreads them over the process's cores.

        The ids depend on neither threads nor on which encoder is at work.
        """
        self._enable_tiktoken_when_worth_it(texts)
        workers = min(len(texts), available_cores()) if threads else 1
        if self._fast is None:
            if threads:
                return self._encode_by_library(texts)
            return [self._encode_by_library([text])[0] for text in texts]
        if workers <= 1:
            return self._encode_fast(texts)
        found: list[np.ndarray] = [np.empty(0, dtype=np.int32)] * len(texts)
        with ThreadPoolExecutor(workers) as pool:
            shares = [texts[i::workers] for i in range(workers)]
            for i, ids in enumerate(pool.map(self._encode_fast, shares)):
                found[i::workers] = ids
        return found

    def encode_parts(self, text: str, cuts: Sequence[int], controls: Sequence[Span] = ()) -> list[np.ndarray]:
        """Ids of the parts of a text, (count,) int32 each: no token stands for characters of two parts.

        So the ids of what precedes a cut do not depend on what follows it, as when a model goes on from it.
        The ids of what follows are those of text that goes on: no space is put before it. "x it" cut at 3 is
        ["x i", "t"], whatever token " it" may be.

        cuts: characters at which a part begins, ascending; not 0. controls: where the text's special tokens
        are meant; what others it spells is text. Controls are in order, and none lies on a cut. A text with
        controls must be free of the noncharacters U+FDD0 to U+FDEF, as chats are. Raises UserError for text
        that has no UTF-8 form.
        """
        self._enable_tiktoken_when_worth_it([text])
        parts = cut(text, cuts, controls)
        fast = self._encode_parts_fast(text, parts) if self._fast is not None else None
        if fast is not None:
            return fast
        ends = {control[1]: control for control in controls}
        try:
            return [self._parts.encode(text, part, ends.get(part[0])) for part in parts]
        except (UnicodeEncodeError, TypeError) as error:
            raise _no_utf8() from error

    def enable_tiktoken(self, texts: Sequence[str] = ()) -> None:
        """Set up tiktoken, if it gives the same ids for strings known to be hard and for some of `texts`.

        Happens by itself after some text; `tiktoken_disabled_because` has the outcome.
        """
        self._encoded = TIKTOKEN_AFTER
        if self._fast is not None:
            return
        sample, size = list(HARD_TEXTS), 0
        for text in texts:
            if size < TIKTOKEN_SAMPLE:
                sample.append(text)
                size += len(text)
        sample = [text for text in sample if not self._holds_added_token(text)]
        try:
            fast = build_tiktoken(self._spec)
        except NotFastError as error:
            self.tiktoken_disabled_because = str(error)
            return
        for text, ids, by_library in zip(sample, fast.encode(sample), self._encode_by_library(sample)):
            if ids is not None and not np.array_equal(ids, by_library):
                self.tiktoken_disabled_because = f"tiktoken gives other ids for {text!r:.60}"
                return
        self._fast, self.tiktoken_disabled_because = fast, None

    def _enable_tiktoken_when_worth_it(self, texts: Sequence[str]) -> None:
        if self._fast is None and self._encoded < TIKTOKEN_AFTER:
            self._encoded += sum(map(len, texts))
            if self._encoded >= TIKTOKEN_AFTER:
                self.enable_tiktoken(texts)

    def _build_library(self, goes_on: bool = False) -> HFTokenizer:
        spec = continuing(self._spec) if goes_on else self._spec
        try:
            library = HFTokenizer.from_str(json.dumps(plain(spec, self.end_of_text)))
        except Exception as error:  # the library raises bare Exception
            raise UserError(f"{self.origin}: is not a usable tokenizer.json ({error})") from error
        library.encode_special_tokens = not self.control_tokens_in_text
        return library

    @cached_property
    def _parts(self) -> ControlTokenEncoder:
        return ControlTokenEncoder(self._library, self._build_library, self._added, self._in_text)

    @property
    def _in_text(self) -> list[str]:
        """What the library takes out of a text before its model sees it."""
        return [t.content for t in self._added.values() if self.control_tokens_in_text or not t.special]

    @cached_property
    def _added_token(self) -> re.Pattern[str] | None:
        """Finds these tokens; None if there are none."""
        return re.compile("|".join(map(re.escape, self._in_text))) if self._in_text else None

    def _holds_added_token(self, text: str) -> bool:
        return self._added_token is not None and self._added_token.search(text) is not None

    def _encode_by_library(self, texts: Sequence[str]) -> list[np.ndarray]:
        try:
            encoded = self._library.encode_batch_fast(list(texts), add_special_tokens=False)
        except (UnicodeEncodeError, TypeError) as error:
            raise _no_utf8() from error
        return [np.array(one.ids, dtype=np.int32) for one in encoded]

    def _encode_fast(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Ids of each text; by the library where the fast encoder cannot have it."""
        found = zip(texts, self._try_fast(texts), strict=True)
        return [self._encode_by_library([text])[0] if ids is None else ids for text, ids in found]

    def _try_fast(self, texts: Sequence[str]) -> list[np.ndarray | None]:
        """Ids of each text by the fast encoder; None where it cannot have it."""
        assert self._fast is not None
        usable = [not self._holds_added_token(text) for text in texts]
        try:
            ids = iter(self._fast.encode([text for text, use in zip(texts, usable) if use]))
        except UnicodeEncodeError as error:
            raise _no_utf8() from error
        return [next(ids) if use else None for use in usable]

    def _encode_parts_fast(self, text: str, parts: Sequence[Part]) -> list[np.ndarray] | None:
        """Ids of each part by the fast encoder; None where it cannot have them."""
        has_controls = any(controls for _, _, controls in parts)
        if has_controls and any(t.lstrip or t.rstrip or t.single_word for t in self._added.values()):
            return None
        texts: list[str] = []  # those of a part stand before, between and after its control tokens
        for start, end, controls in parts:
            bounds = [start, *(bound for control in controls for bound in control), end]
            texts += [text[a:b] for a, b in zip(bounds[::2], bounds[1::2])]
        ids = self._try_fast(texts)
        if any(one is None for one in ids):
            return None
        of_texts = iter(ids)
        found: list[np.ndarray] = []
        for _, _, controls in parts:
            pieces = [next(of_texts)]
            for start, end in controls:
                control = self.control_tokens[text[start:end]]
                pieces += [np.array([control], dtype=np.int32), next(of_texts)]
            found.append(np.concatenate(pieces))  # type: ignore[arg-type]
        return found


def _no_utf8() -> UserError:
    return UserError("the text holds a lone surrogate, which no UTF-8 can hold")
