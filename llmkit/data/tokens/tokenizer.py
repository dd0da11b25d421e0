"""A tokenizer: text to token ids and back, its files, and what prompts begin with.

Every kind of tokenizer is held as the content of a Hugging Face tokenizer.json, so that a run's tokenizer
can be saved, exported and hashed in one way. Of bytes, with the end-of-text "<end>":

    tokenizer.encode("a<end>é")        [97, 60, 101, 110, 100, 62, 195, 169]: text spells no control token
    tokenizer.end_of_text_id           256
    tokenizer.decode([97, 195, 256])   "a\\ufffd<end>": half a character is U+FFFD
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from xxhash import xxh64_hexdigest

from llmkit.data.tokens.control_tokens import Span, has_noncharacters
from llmkit.data.tokens.stream_decoder import StreamDecoder
from llmkit.data.tokens.text_encoder import TextEncoder
from llmkit.data.tokens.tokenizer_json import (
    added_around,
    bytes_of_ids,
    canonical,
    opening_with,
    parse,
    unknown_token,
)
from llmkit.errors import UserError
from llmkit.files import read_json, sync_folder, write_atomic

NAMED_TOKENS = (
    "bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token",
)  # fmt: skip
"""Keys of a tokenizer_config.json that chat templates may use."""


class Tokenizer(TextEncoder):
    """Encodes text without ever reading a control token out of it, unless asked to, and decodes ids.

    content: a tokenizer.json. end_of_text: the token between documents, which must be in the vocabulary.
    origin: where the content came from, for messages. control_tokens_in_text: text that spells a special
    token becomes that token. chat_template: Jinja template of chats. named_tokens: what templates call them,
    such as bos_token, and their text; eos_token is end_of_text if they lack it, or the vocabulary does.
    ends: further tokens that end an answer; those that are not in the vocabulary are left out. opens_chats:
    the model saw chats as documents of llmkit, by whomever it was published.

    vocab_size: largest id + 1; ids may have gaps. hash: xxh64 of what decides the ids of a text (chat
    template and ends do not). opening_id: what a prompt begins with: end_of_text, which begins documents in
    training; see `open_as_published`. opens_chats: whether chats do, too. ends: the ids that end an answer,
    end_of_text among them.
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
        ends: Iterable[str] = (),
        opens_chats: bool = False,
    ) -> None:
        super().__init__(parse(content, origin), end_of_text, origin, control_tokens_in_text)
        described = canonical(self._spec) + end_of_text + "\0control" * control_tokens_in_text
        self.hash = xxh64_hexdigest(described.encode())
        named, vocabulary = dict(named_tokens or {}), self.vocabulary
        eos = named.get("eos_token")
        if end_of_text not in vocabulary:
            contents = [token.content for token in self._added.values()]
            raise UserError(
                f"data.tokenizer.end_of_text: {origin} has no token {end_of_text!r}; "
                + (f"its own end is {eos!r}, and " if eos in vocabulary else "")
                + f"its added tokens are {', '.join(contents[:20]) or 'none'}"
            )
        self.end_of_text_id = vocabulary[end_of_text]
        self.ends = frozenset({self.end_of_text_id, *(vocabulary[t] for t in ends if t in vocabulary)})
        self.vocab_size = max(vocabulary.values()) + 1
        self.chat_template = chat_template
        self.named_tokens = named | {"eos_token": eos if eos in vocabulary else end_of_text}
        self._saw_documents = opens_chats
        self.open_as_documents()
        if not control_tokens_in_text:
            self._refuse_spelled_control_tokens()

    def __reduce__(self) -> tuple[Any, ...]:
        return Tokenizer.from_config, (canonical(self._spec), self._config(), self.origin)

    def open_as_published(self) -> Tokenizer:
        """Prompts begin with what the tokenizer.json puts before a text, such as bos, if it does: so they do
        where others have trained the model. If it puts none, chats begin as their template says, and texts
        with end_of_text. Returns itself. Raises UserError where what it puts is no token."""
        before, behind = added_around(self._spec, self.origin)
        if foreign := [id for id in (*before, *behind) if id >= self.vocab_size]:
            raise UserError(
                f"{self.origin}: its post_processor adds the id {foreign[0]}, which is no token of it"
            )
        self.opening_id, self._published = before[0] if before else self.end_of_text_id, True
        self.opens_chats = bool(before) or self._saw_documents
        return self

    def open_as_documents(self) -> None:
        """Prompts begin with end_of_text, as documents do where llmkit trains a model."""
        self.opening_id, self._published, self.opens_chats = self.end_of_text_id, False, True

    @property
    def is_foreign(self) -> bool:
        """Whether others have trained the model, by whose files prompts begin."""
        return self._published and not self._saw_documents

    def encode_with_controls(self, text: str) -> np.ndarray:
        """Ids of a text, (count,) int32, in which every special token that it spells is meant.

        Raises UserError for text that has no UTF-8 form, or noncharacters beside control tokens.
        """
        if self.control_tokens_in_text:
            return self.encode(text)
        controls = self.spelled_controls(text)
        if controls and has_noncharacters(text):
            raise UserError("the text holds noncharacters of Unicode (U+FDD0 to U+FDEF): take them out")
        return self.encode_parts(text, (), controls)[0]

    def spelled_controls(self, text: str) -> list[Span]:
        """Where a text spells special tokens."""
        return [match.span() for match in self._spelled_control.finditer(text)]

    @property
    def known_ids(self) -> np.ndarray:
        """The ids of the vocabulary, ascending, (count,) int64: there may be gaps between them."""
        return np.array(sorted(self.vocabulary.values()), dtype=np.int64)

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
        if self._bytes is None:
            return self._library.decode([int(id) for id in ids], skip_special_tokens=False)
        return b"".join(self._bytes.get(int(id), b"\xff") for id in ids).decode("utf-8", errors="replace")

    def bytes_of(self, token: int) -> bytes | None:
        """The bytes that an id stands for; None where they are not known: its text is no whole character."""
        if self._bytes is not None:
            return self._bytes.get(token)
        text = self.decode([token])
        return None if "\ufffd" in text else text.encode()

    def shown(self, token: int) -> str:
        """The text of an id; of one that is no whole character its bytes, as OpenAI's API shows them."""
        text, found = self.decode([token]), self.bytes_of(token)
        if "\ufffd" not in text or found is None:
            return text
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in found)

    def stream(self, before: Sequence[int] = ()) -> StreamDecoder:
        """A decoder to push ids into one by one. before: those of the text that they continue."""
        return StreamDecoder(self._library, self._bytes, before)

    def files(self) -> dict[str, bytes]:
        """Name and content of the files that hold this tokenizer; Hugging Face's transformers reads them."""
        return _as_files(self._spec, self._config())

    def files_for_others(self) -> dict[str, bytes]:
        """The same for programs that know these files alone, with the ids that the model was trained on.

        Where the tokenizer.json puts tokens around a text, theirs puts before it what prompts begin with.
        """
        opens_chats = {} if self._published else {"opens_chats": True}
        return _as_files(self._spec_for_others, self._config() | opens_chats)

    @property
    def added_by_others(self) -> tuple[list[int], list[int]]:
        """The ids that those programs put before and behind a text."""
        return added_around(self._spec_for_others, self.origin)

    @property
    def _spec_for_others(self) -> dict[str, Any]:
        around = added_around(self._spec, self.origin)
        if self._published or around in (([], []), ([self.opening_id], [])):
            return self._spec
        return opening_with(self._spec, self.end_of_text, self.end_of_text_id)

    def save(self, folder: Path) -> None:
        """Write `files` into a folder, which is created."""
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in self.files().items():
            with write_atomic(folder / name) as file:
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
            ends=[token for token in config.get("answer_ends") or () if isinstance(token, str)],
            opens_chats=config.get("opens_chats") is True,
        )

    def _config(self) -> dict[str, Any]:
        config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", **self.named_tokens}
        if self.named_tokens["eos_token"] != self.end_of_text:
            config["end_of_text"] = self.end_of_text
        if more := self.ends - {self.end_of_text_id}:
            config["answer_ends"] = [self._library.id_to_token(id) for id in sorted(more)]
        if self.chat_template is not None:
            config["chat_template"] = self.chat_template
        if self.control_tokens_in_text:
            config["control_tokens_in_text"] = True
        if self._saw_documents:
            config["opens_chats"] = True
        return config

    def _refuse_spelled_control_tokens(self) -> None:
        """Raises UserError for a control token that the model itself makes of text."""
        unknown = unknown_token(self._spec["model"])
        contents = [token for token in {**self.control_tokens, self.end_of_text: 0} if token != unknown]
        for token, ids in zip(contents, self._encode_by_library(contents), strict=True):
            if self.vocabulary[token] in ids:
                raise UserError(
                    f"data.tokenizer.end_of_text: {self.origin} reads the text {token!r} as a control token, "
                    "so that a document could end others; choose a token that text cannot spell"
                    if token == self.end_of_text
                    else f"data.tokenizer: {self.origin} reads the text {token!r} as a control token; where "
                    "that is meant, set data.tokenizer.control_tokens_in_text to true"
                )

    @cached_property
    def _bytes(self) -> dict[int, bytes] | None:
        return bytes_of_ids(self._spec, self.vocabulary)

    @cached_property
    def _byte_lengths(self) -> np.ndarray:
        """How many bytes each id stands for, (vocab_size,) int64; 0 where there is none."""
        assert self._bytes is not None
        lengths = np.zeros(self.vocab_size, dtype=np.int64)
        lengths[list(self._bytes)] = [len(content) for content in self._bytes.values()]
        return lengths

    @cached_property
    def _spelled_control(self) -> re.Pattern[str]:
        longest_first = sorted(self.control_tokens, key=len, reverse=True)
        return re.compile("|".join(map(re.escape, longest_first)) or "(?!)")


def named_tokens(config: Mapping[str, Any]) -> dict[str, str]:
    """The special tokens that a tokenizer_config.json names; each is a text or an object with one."""
    found = {}
    for name in NAMED_TOKENS:
        token = config.get(name)
        content = token.get("content") if isinstance(token, dict) else token
        if isinstance(content, str):
            found[name] = content
    return found


def utf8_size(text: str) -> int:
    """Bytes of a text in UTF-8."""
    return len(text) if text.isascii() else len(text.encode())


def _as_files(spec: dict[str, Any], config: dict[str, Any]) -> dict[str, bytes]:
    contents = {"tokenizer.json": spec, "tokenizer_config.json": config}
    return {name: json.dumps(content).encode() + b"\n" for name, content in contents.items()}
