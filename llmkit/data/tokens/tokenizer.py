"""Text to token ids and back.

Every kind of tokenizer is held as the content of a Hugging Face tokenizer.json, so that a run's tokenizer
can be saved, exported and hashed in one way.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer as Encoder
from xxhash import xxh64_hexdigest

from llmkit.errors import UserError
from llmkit.files import read_json, sync_folder, write_whole


def byte_symbols() -> list[str]:
    """The character that stands for each byte in byte-level vocabularies (Radford et al. 2019, GPT-2)."""
    shown = [*range(ord("!"), ord("~") + 1), *range(ord("\xa1"), ord("\xac") + 1), *range(ord("\xae"), 256)]
    symbols = {byte: chr(byte) for byte in shown}
    for byte in range(256):
        symbols.setdefault(byte, chr(256 + len(symbols) - len(shown)))
    return [symbols[byte] for byte in range(256)]


class Tokenizer:
    """Encodes text without ever reading a control token out of it.

    content: a tokenizer.json. end_of_text: the token between documents, which must be in the vocabulary.
    origin: where the content came from, for messages.

    vocab_size: largest id + 1; ids may have gaps. hash: xxh64 of the content, the same for the same ids.
    """

    def __init__(self, content: str, end_of_text: str, origin: str = "tokenizer") -> None:
        self.end_of_text = end_of_text
        self._spec = _parse(content, origin)
        self.hash = xxh64_hexdigest((_canonical(self._spec) + end_of_text).encode())
        try:
            self._encoder = Encoder.from_str(json.dumps(_plain(self._spec, end_of_text)))
        except Exception as error:  # the library raises bare Exception
            raise UserError(f"{origin}: is not a usable tokenizer.json ({error})") from error
        # Text is text: what looks like a control token in it is encoded like any other characters.
        self._encoder.encode_special_tokens = True
        vocabulary: dict[str, int] = self._encoder.get_vocab(with_added_tokens=True)
        if end_of_text not in vocabulary:
            added = [token.content for token in self._encoder.get_added_tokens_decoder().values()]
            raise UserError(
                f"data.tokenizer.end_of_text: {origin} has no token {end_of_text!r}; "
                f"its added tokens are {', '.join(added[:20]) or 'none'}"
            )
        self.end_of_text_id = vocabulary[end_of_text]
        self.vocab_size = max(vocabulary.values()) + 1
        self._bytes = _bytes_of_ids(self._spec, vocabulary)
        plain_bytes = {symbol: byte for byte, symbol in enumerate(byte_symbols())}
        self._ids_are_bytes = vocabulary == plain_bytes | {end_of_text: 256}
        if self.end_of_text_id in self.encode(end_of_text):
            raise UserError(
                f"data.tokenizer.end_of_text: {origin} reads the text {end_of_text!r} as a control token, "
                "so that a document could end others; choose a token that text cannot spell"
            )

    def encode(self, text: str) -> np.ndarray:
        """Ids of a text, (count,) int32; raises UserError for text that has no UTF-8 form."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Ids of several texts, (count,) int32 each; the library spreads them over its threads."""
        try:
            if self._ids_are_bytes:
                return [np.frombuffer(text.encode(), dtype=np.uint8).astype(np.int32) for text in texts]
            encoded = self._encoder.encode_batch_fast(list(texts), add_special_tokens=False)
        except (UnicodeEncodeError, TypeError) as error:
            raise UserError("the text holds a lone surrogate, which no UTF-8 can hold") from error
        return [np.array(one.ids, dtype=np.int32) for one in encoded]

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """Text of some ids; bytes that are no UTF-8, and ids that mean nothing, become U+FFFD."""
        known = [int(i) for i in ids]
        if self._bytes is not None:
            return b"".join(self._bytes.get(i, b"\xff") for i in known).decode("utf-8", errors="replace")
        return self._encoder.decode(known, skip_special_tokens=False)

    def stream(self) -> StreamDecoder:
        """A decoder to push ids into one by one."""
        return StreamDecoder(self._encoder, self._bytes)

    def files(self) -> dict[str, bytes]:
        """Name and content of the files that hold this tokenizer; Hugging Face's transformers reads them."""
        config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": self.end_of_text}
        contents = {"tokenizer.json": self._spec, "tokenizer_config.json": config}
        return {name: json.dumps(content, indent=1).encode() + b"\n" for name, content in contents.items()}

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
        end_of_text = read_json(settings, remedy).get("eos_token")
        if not isinstance(end_of_text, str):
            raise UserError(f"{settings}: has no eos_token; {remedy}")
        return cls(json.dumps(read_json(path, remedy)), end_of_text, str(path))


class StreamDecoder:
    """Text of ids that come one by one: a character is given out once all its bytes are there."""

    def __init__(self, encoder: Encoder, bytes_of_ids: dict[int, bytes] | None) -> None:
        self._encoder, self._bytes = encoder, bytes_of_ids
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._given: list[int] = []  # the ids before the waiting ones: a piece's text may depend on them
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
        before = self._encoder.decode(self._given, skip_special_tokens=False)
        return self._encoder.decode(self._given + self._waiting, skip_special_tokens=False)[len(before) :]


def _parse(content: str, origin: str) -> dict[str, Any]:
    try:
        spec = json.loads(content)
    except ValueError as error:
        raise UserError(f"{origin}: is not valid JSON ({error})") from error
    if not isinstance(spec, dict) or "model" not in spec:
        raise UserError(f"{origin}: is not a tokenizer.json: it has no model")
    return spec


def _canonical(spec: dict[str, Any]) -> str:
    return json.dumps(spec, sort_keys=True, separators=(",", ":"))


def _plain(spec: dict[str, Any], end_of_text: str) -> dict[str, Any]:
    """The same tokenizer without what would drop, add or vary tokens of a training text."""
    added = [
        token | {"special": True} if token.get("content") == end_of_text else token
        for token in spec.get("added_tokens") or []
    ]
    model = spec["model"] | ({"dropout": None} if spec["model"].get("dropout") else {})
    return spec | {"truncation": None, "padding": None, "added_tokens": added, "model": model}


def _bytes_of_ids(spec: dict[str, Any], vocabulary: dict[str, int]) -> dict[int, bytes] | None:
    """Bytes of each id of a byte-level vocabulary; None for other kinds, whose text depends on neighbours."""
    if (spec.get("decoder") or {}).get("type") != "ByteLevel":
        return None
    added = {token["content"] for token in spec.get("added_tokens") or []}
    byte_of = {symbol: byte for byte, symbol in enumerate(byte_symbols())}
    return {
        number: token.encode() if token in added else bytes(byte_of[symbol] for symbol in token)
        for token, number in vocabulary.items()
        if token in added or all(symbol in byte_of for symbol in token)
    }
