"""Text to token ids and back.

Every kind of tokenizer is held as the content of a Hugging Face tokenizer.json, so that a run's tokenizer
can be saved, exported and hashed in one way.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer as Encoder
from xxhash import xxh64_hexdigest

from llmkit.cores import available_cores
from llmkit.data.tokens.byte_level import byte_lengths, bytes_of_ids
from llmkit.data.tokens.fast import BytesEncoder, FastEncoder, NotFastError, build_fast_encoder, ids_are_bytes
from llmkit.data.tokens.hard_texts import HARD_TEXTS
from llmkit.data.tokens.marked import Span, has_noncharacters
from llmkit.data.tokens.parts import Part, PartEncoder, cut
from llmkit.data.tokens.stream_decoder import StreamDecoder
from llmkit.data.tokens.tokenizer_json import canonical, continuing, parse, plain, unknown_token
from llmkit.errors import UserError
from llmkit.files import read_json, sync_folder, write_whole

SPEED_UP_AFTER = 1 << 20
"""Characters that are encoded before the fast encoder is set up: that takes about a second, in which a run
that tokenizes its text would wait for its first batch."""
SPEED_UP_SAMPLE = 1 << 18
"""Characters of the text at hand on which both encoders are compared."""

NAMED_TOKENS = (
    "bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token",
)  # fmt: skip
"""Keys of a tokenizer_config.json that chat templates may use."""


class Tokenizer:
    """Encodes text without ever reading a control token out of it, unless asked to.

    content: a tokenizer.json. end_of_text: the token between documents, which must be in the vocabulary.
    origin: where the content came from, for messages. control_tokens_in_text: text that spells a special
    token becomes that token. chat_template: Jinja template of chats. named_tokens: what templates call them,
    such as bos_token, and their text; eos_token is end_of_text if they lack it, or the vocabulary does.

    vocab_size: largest id + 1; ids may have gaps. control_tokens: text and id of the special tokens. hash:
    xxh64 of what decides the ids of a text (the chat template does not).
    """

    def __init__(
        self,
        content: str,
        end_of_text: str,
        origin: str = "tokenizer",
        *,
        control_tokens_in_text: bool = False,
        chat_template: str | None = None,
        named_tokens: Mapping[str, str] | None = None,
    ) -> None:
        self.end_of_text, self.origin = end_of_text, origin
        self.control_tokens_in_text = control_tokens_in_text
        self.chat_template, named = chat_template, dict(named_tokens or {})
        self._spec = parse(content, origin)
        described = canonical(self._spec) + end_of_text + "\0control" * control_tokens_in_text
        self.hash = xxh64_hexdigest(described.encode())
        self._encoder = self._new_encoder()
        vocabulary: dict[str, int] = self._encoder.get_vocab(with_added_tokens=True)
        added = self._encoder.get_added_tokens_decoder()
        if end_of_text not in vocabulary:
            contents = [token.content for token in added.values()]
            eos = named.get("eos_token")
            raise UserError(
                f"data.tokenizer.end_of_text: {origin} has no token {end_of_text!r}; "
                + (f"its own end is {eos!r}, and " if eos in vocabulary else "")
                + f"its added tokens are {', '.join(contents[:20]) or 'none'}"
            )
        self.end_of_text_id = vocabulary[end_of_text]
        self.vocab_size = max(vocabulary.values()) + 1
        eos = named.get("eos_token")
        self.named_tokens = named | {"eos_token": eos if eos in vocabulary else end_of_text}
        self.control_tokens = {token.content: number for number, token in added.items() if token.special}
        self._added = added
        self._fast: FastEncoder | None = None
        self._slow_reason: str | None = "not tried yet"
        self._encoded = 0  # characters, until the fast encoder is set up
        if ids_are_bytes(self._spec, vocabulary, end_of_text):
            self._fast, self._slow_reason = BytesEncoder(), None
        if not control_tokens_in_text:
            self._refuse_spelled_control_tokens(vocabulary)

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuilt, (canonical(self._spec), self._config(), self.origin)

    @property
    def fast(self) -> bool:
        """Whether the fast encoder is at work."""
        return self._fast is not None

    @property
    def slow_reason(self) -> str | None:
        """Why the fast encoder is not at work; None where it is."""
        return self._slow_reason

    def encode(self, text: str) -> np.ndarray:
        """Ids of a text, (count,) int32; raises UserError for text that has no UTF-8 form."""
        return self.encode_batch([text], threads=False)[0]

    def encode_with_controls(self, text: str) -> np.ndarray:
        """Ids of a text, (count,) int32, in which every special token that it spells is meant.

        Raises UserError for text that has no UTF-8 form, or noncharacters beside control tokens.
        """
        controls = self.spelled_controls(text)
        if controls and has_noncharacters(text):
            raise UserError("the text holds noncharacters of Unicode (U+FDD0 to U+FDEF): take them out")
        return self.encode_parts(text, (), controls)[0]

    def spelled_controls(self, text: str) -> list[Span]:
        """Where a text spells special tokens."""
        return [match.span() for match in self._spelled_control.finditer(text)]

    def encode_batch(self, texts: Sequence[str], threads: bool = True) -> list[np.ndarray]:
        """Ids of several texts, (count,) int32 each; `threads` spreads them over the process's cores.

        The ids depend on neither threads nor on which encoder is at work.
        """
        self._count(texts)
        workers = min(len(texts), available_cores()) if threads else 1
        if self._fast is None or workers <= 1:
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
        self._encoded = SPEED_UP_AFTER
        if self._fast is not None:
            return
        sample, size = [], 0
        for text in texts:
            if size < SPEED_UP_SAMPLE:
                sample.append(text)
                size += len(text)
        try:
            fast = build_fast_encoder(self._spec)
            comparable = [text for text in (*HARD_TEXTS, *sample) if not self._holds_added_token(text)]
            fast.check(comparable, self._encode_slowly)
        except NotFastError as error:
            self._slow_reason = str(error)
        else:
            self._fast, self._slow_reason = fast, None

    def encode_parts(self, text: str, cuts: Sequence[int], controls: Sequence[Span] = ()) -> list[np.ndarray]:
        """Ids of the parts of a text, (count,) int32 each: no token stands for characters of two parts.

        So the ids of what precedes a cut do not depend on what follows it, as when a model goes on from it.
        The ids of what follows are those of text that goes on: no space is put before it.

        cuts: characters at which a part begins, ascending; not 0. controls: where the text's special tokens
        are meant; what others it spells is text. Controls are in order, and none lies on a cut. A text with
        controls must be free of the noncharacters U+FDD0 to U+FDEF, as chats are. Raises UserError for text
        that has no UTF-8 form.
        """
        self._count([text])
        parts = cut(text, cuts, controls)
        quick = self._encode_parts_fast(text, parts) if self._fast is not None else None
        if quick is not None:
            return quick
        ends = {control[1]: control for control in controls}
        try:
            return [self._parts.encode(text, part, ends.get(part[0])) for part in parts]
        except (UnicodeEncodeError, TypeError) as error:
            raise _no_utf8() from error

    @property
    def known_ids(self) -> np.ndarray:
        """The ids of the vocabulary, ascending, (count,) int64: there may be gaps between them."""
        return np.array(sorted(self._encoder.get_vocab(with_added_tokens=True).values()), dtype=np.int64)

    @property
    def keeps_bytes(self) -> bool:
        """Whether the ids of any text stand for its very bytes."""
        is_plain = self._spec.get("normalizer") is None and not self.control_tokens_in_text
        return is_plain and self._bytes is not None

    def count_bytes(self, ids: np.ndarray) -> int:
        """UTF-8 bytes of the text that some ids stand for; control tokens are none."""
        ids = ids[~np.isin(ids, list(self.control_tokens.values()))]
        if self._bytes is not None:
            return int(self._byte_lengths[ids].sum())
        return len(self.decode(ids).encode())

    def text_bytes(self, text: str) -> int:
        """UTF-8 bytes of a text, without those of the control tokens that it spells where they are tokens."""
        spelled = self.spelled_controls(text) if self.control_tokens_in_text else ()
        return utf8_size(text) - sum(utf8_size(text[start:end]) for start, end in spelled)

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """Text of some ids; bytes that are no UTF-8, and ids that mean nothing, become U+FFFD."""
        known = [int(i) for i in ids]
        if self._bytes is not None:
            return b"".join(self._bytes.get(i, b"\xff") for i in known).decode("utf-8", errors="replace")
        return self._encoder.decode(known, skip_special_tokens=False)

    def stream(self, before: Sequence[int] = ()) -> StreamDecoder:
        """A decoder to push ids into one by one. before: those of the text that they continue."""
        return StreamDecoder(self._encoder, self._bytes, before)

    def files(self) -> dict[str, bytes]:
        """Name and content of the files that hold this tokenizer; Hugging Face's transformers reads them."""
        contents = {"tokenizer.json": self._spec, "tokenizer_config.json": self._config()}
        return {name: json.dumps(content).encode() + b"\n" for name, content in contents.items()}

    def save(self, folder: Path) -> None:
        """Write `files` into a folder, which is created."""
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in self.files().items():
            with write_whole(folder / name) as file:
                file.write(content)
        sync_folder(folder)

    @classmethod
    def load(cls, folder: Path, remedy: str = "save the tokenizer again") -> Tokenizer:
        """What `save` wrote; raises UserError, ending in `remedy`, if it is missing or broken."""
        path, settings = folder / "tokenizer.json", folder / "tokenizer_config.json"
        config = read_json(settings, remedy)
        if not isinstance(config.get("eos_token"), str):
            raise UserError(f"{settings}: has no eos_token; {remedy}")
        return cls.from_config(json.dumps(read_json(path, remedy)), config, str(path))

    @classmethod
    def from_config(cls, content: str, config: Mapping[str, Any], origin: str = "tokenizer") -> Tokenizer:
        """The tokenizer of a tokenizer.json and the tokenizer_config.json that `files` gave beside it."""
        template = config.get("chat_template")
        return cls(
            content,
            config.get("end_of_text", config["eos_token"]),
            origin,
            control_tokens_in_text=config.get("control_tokens_in_text") is True,
            chat_template=template if isinstance(template, str) else None,
            named_tokens=named_tokens(config),
        )

    def _config(self) -> dict[str, Any]:
        config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", **self.named_tokens}
        if self.named_tokens["eos_token"] != self.end_of_text:
            config["end_of_text"] = self.end_of_text
        if self.chat_template is not None:
            config["chat_template"] = self.chat_template
        if self.control_tokens_in_text:
            config["control_tokens_in_text"] = True
        return config

    def _new_encoder(self, goes_on: bool = False) -> Encoder:
        spec = continuing(self._spec) if goes_on else self._spec
        try:
            encoder = Encoder.from_str(json.dumps(plain(spec, self.end_of_text)))
        except Exception as error:  # the library raises bare Exception
            raise UserError(f"{self.origin}: is not a usable tokenizer.json ({error})") from error
        encoder.encode_special_tokens = not self.control_tokens_in_text
        return encoder

    def _refuse_spelled_control_tokens(self, vocabulary: dict[str, int]) -> None:
        """Raises UserError for a control token that the model itself makes of text."""
        unknown = unknown_token(self._spec["model"])
        contents = [token for token in {**self.control_tokens, self.end_of_text: 0} if token != unknown]
        for token, ids in zip(contents, self._encode_slowly(contents), strict=True):
            if vocabulary[token] in ids:
                raise UserError(
                    f"data.tokenizer.end_of_text: {self.origin} reads the text {token!r} as a control token, "
                    "so that a document could end others; choose a token that text cannot spell"
                    if token == self.end_of_text
                    else f"data.tokenizer: {self.origin} reads the text {token!r} as a control token; where "
                    "that is meant, set data.tokenizer.control_tokens_in_text to true"
                )

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

    @cached_property
    def _bytes(self) -> dict[int, bytes] | None:
        return bytes_of_ids(self._spec, self._encoder.get_vocab(with_added_tokens=True))

    @cached_property
    def _byte_lengths(self) -> np.ndarray:
        assert self._bytes is not None
        return byte_lengths(self._bytes, self.vocab_size)

    @cached_property
    def _spelled_control(self) -> re.Pattern[str]:
        return re.compile("|".join(map(re.escape, sorted(self.control_tokens, key=len, reverse=True))))

    @cached_property
    def _parts(self) -> PartEncoder:
        return PartEncoder(self._new_encoder, self._added, self._in_text)

    def _count(self, texts: Sequence[str]) -> None:
        """Set up the fast encoder once that much is encoded that it pays."""
        if self._fast is None and self._encoded < SPEED_UP_AFTER:
            self._encoded += sum(map(len, texts))
            if self._encoded >= SPEED_UP_AFTER:
                self.speed_up(texts)

    def _encode_share(self, texts: Sequence[str], threads: bool) -> list[np.ndarray]:
        if self._fast is None:
            return self._encode_slowly(texts) if threads else [self._encode_slowly([t])[0] for t in texts]
        found = zip(texts, self._quick(texts), strict=True)
        return [self._encode_slowly([text])[0] if ids is None else ids for text, ids in found]

    def _quick(self, texts: Sequence[str]) -> list[np.ndarray | None]:
        """Ids of each text by the fast encoder; None where it cannot have it."""
        assert self._fast is not None
        plain = [text for text in texts if not self._holds_added_token(text)]
        try:
            ids = self._fast.encode(plain)
        except UnicodeEncodeError as error:
            raise _no_utf8() from error
        if len(plain) == len(texts):
            return ids
        rest = iter(ids)
        return [None if self._holds_added_token(text) else next(rest) for text in texts]

    def _encode_slowly(self, texts: Sequence[str]) -> list[np.ndarray]:
        try:
            encoded = self._encoder.encode_batch_fast(list(texts), add_special_tokens=False)
        except (UnicodeEncodeError, TypeError) as error:
            raise _no_utf8() from error
        return [np.array(one.ids, dtype=np.int32) for one in encoded]

    def _encode_parts_fast(self, text: str, parts: Sequence[Part]) -> list[np.ndarray] | None:
        """Ids of each part by the fast encoder; None where it cannot have them."""
        has_controls = any(controls for _, _, controls in parts)
        added = self._added.values()
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


def named_tokens(config: Mapping[str, Any]) -> dict[str, str]:
    """The special tokens that a tokenizer_config.json names; each is a text or an object with one."""
    found = {}
    for name in NAMED_TOKENS:
        token = config.get(name)
        content = token.get("content") if isinstance(token, dict) else token
        if isinstance(content, str):
            found[name] = content
    return found


def _rebuilt(content: str, config: dict[str, Any], origin: str) -> Tokenizer:
    return Tokenizer.from_config(content, config, origin)


def utf8_size(text: str) -> int:
    """Bytes of a text in UTF-8."""
    return len(text) if text.isascii() else len(text.encode())


def _no_utf8() -> UserError:
    return UserError("the text holds a lone surrogate, which no UTF-8 can hold")
