"""A faster encoder for byte-level BPE: tiktoken's, taken only where it is proved to give the same ids.

Three things make up the ids, and each is looked at by itself:

- the merges: shown to be the same for every text (see `_ranks`);
- the pieces that the pattern cuts a text into: two regex engines, compared with a vocabulary whose ids show
  every cut, on characters from every border between Unicode's categories (`_check_pattern`);
- all of it together, on strings known to be hard and on texts of the data (`FastEncoder.check`).

A text that tiktoken cannot take (its regex engine gives up on runs of about a hundred thousand spaces),
whose bytes do not all come back, or that the tokenizer composes first (NFC), is left to the other encoder.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from llmkit.data.tokens.byte_level import byte_symbols
from llmkit.data.tokens.composed import is_composed, library_agrees
from llmkit.data.tokens.hard_texts import CONTEXT, pattern_texts
from llmkit.data.tokens.tokenizer_json import merges_of, model_only

if TYPE_CHECKING:
    from tiktoken import Encoding

GPT2_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
"""What the library's ByteLevel pre-tokenizer cuts by (Radford et al. 2019)."""


_NOTHING = np.zeros(0, dtype=np.int32)


class NotFastError(Exception):
    """The fast encoder cannot stand in; the message says why."""


class FastEncoder:
    """Ids of plain text, by tiktoken; releases Python's lock while it works.

    encoding: its ids are ranks. ids: the vocabulary's id of each rank, int32. lengths: its bytes.
    composes: the tokenizer brings texts into their composed form (NFC); those that are not are left to it.
    """

    def __init__(
        self, encoding: Encoding, ids: np.ndarray, lengths: np.ndarray, composes: bool = False
    ) -> None:
        self._encoding, self._ids, self._lengths, self._composes = encoding, ids, lengths, composes

    def encode(self, texts: Sequence[str]) -> list[np.ndarray | None]:
        """Ids of each text, (count,) int32; None where the other encoder has to do it.

        Raises UnicodeEncodeError for a lone surrogate.
        """
        given = [self._ranks(text) for text in texts]
        known = [ranks for ranks in given if ranks is not None]
        # All texts at once: for one alone numpy's calls take a tenth of the time.
        together = np.concatenate(known) if known else _NOTHING
        ids, ends = self._ids.take(together), np.concatenate(([0], self._lengths.take(together).cumsum()))
        found: list[np.ndarray | None] = []
        start = 0
        for text, ranks in zip(texts, given, strict=True):
            if ranks is None:
                found.append(None)
                continue
            end = start + ranks.size
            size = len(text) if text.isascii() else len(text.encode())
            # Characters that the pattern does not match are dropped: then bytes are missing.
            found.append(ids[start:end] if ends[end] - ends[start] == size else None)
            start = end
        return found

    def _ranks(self, text: str) -> np.ndarray | None:
        if self._composes and not is_composed(text):
            return None
        try:
            return self._encoding.encode_to_numpy(text, disallowed_special=())
        except UnicodeEncodeError:
            raise
        except ValueError:  # the regex engine ran into its limits
            return None

    def check(self, texts: Sequence[str], slow: Callable[[Sequence[str]], list[np.ndarray]]) -> None:
        """Raises NotFastError where the ids of `texts` differ from those of `slow`."""
        for text, got, expected in zip(texts, self.encode(texts), slow(texts), strict=True):
            if got is not None and not np.array_equal(got, expected):
                raise NotFastError(f"tiktoken gives other ids for {text!r:.60}")


class BytesEncoder(FastEncoder):
    """Ids that are the bytes themselves."""

    def __init__(self) -> None:
        pass

    def encode(self, texts: Sequence[str]) -> list[np.ndarray | None]:
        """Ids of each text, (count,) int32; raises UnicodeEncodeError for a lone surrogate."""
        return [np.frombuffer(text.encode(), dtype=np.uint8).astype(np.int32) for text in texts]


def ids_are_bytes(spec: dict[str, Any], vocabulary: dict[str, int], end_of_text: str) -> bool:
    """Whether a tokenizer.json makes every byte of a text its own id, with end-of-text as 256.

    vocabulary: its tokens and ids, added ones among them.
    """
    if vocabulary != {symbol: byte for byte, symbol in enumerate(byte_symbols())} | {end_of_text: 256}:
        return False
    try:
        composes = _composes(spec)
        _pattern(spec)
        _ranks(spec["model"])
    except NotFastError:
        return False
    return not composes


def build_fast_encoder(spec: dict[str, Any]) -> FastEncoder:
    """The fast encoder of a tokenizer.json, its merges and its pattern proved, not yet checked on texts.

    Raises NotFastError for a tokenizer of another kind, and where the proof fails.
    """
    composes, pattern = _composes(spec), _pattern(spec)
    ranks = _ranks(spec["model"])
    if composes and not library_agrees():
        raise NotFastError("its library composes characters (NFC) that are unknown to this Python")
    _check_pattern(pattern)
    return _encoder(pattern, ranks, spec["model"]["vocab"], composes)


def _encoder(
    pattern: str, ranks: dict[str, int], vocabulary: dict[str, int], composes: bool = False
) -> FastEncoder:
    from tiktoken import Encoding

    byte_of = {symbol: byte for byte, symbol in enumerate(byte_symbols())}
    ranked = {bytes(byte_of[symbol] for symbol in token): rank for token, rank in ranks.items()}
    # Never allowed in a text, so never found; without any, tiktoken tries one at every character.
    unused = {"\ufdd0unused\ufdd0": len(ranks)}
    try:
        encoding = Encoding("llmkit", pat_str=pattern, mergeable_ranks=ranked, special_tokens=unused)
    except ValueError as error:
        raise NotFastError(f"tiktoken does not take its pattern ({error})") from error
    ids = np.array([vocabulary[token] for token in ranks], dtype=np.int32)
    lengths = np.array([len(content) for content in ranked], dtype=np.int64)
    return FastEncoder(encoding, ids, lengths, composes)


def _composes(spec: dict[str, Any]) -> bool:
    """Whether texts are brought into their composed form (NFC) before anything else, and not changed more."""
    normalizer = spec.get("normalizer")
    if normalizer not in (None, {"type": "NFC"}):
        raise NotFastError("it changes the text before encoding (a normalizer)")
    return normalizer is not None


def _pattern(spec: dict[str, Any]) -> str:
    """The regex that cuts a text into the pieces inside which tokens are merged."""
    cutter = spec.get("pre_tokenizer") or {}
    steps = cutter.get("pretokenizers", []) if cutter.get("type") == "Sequence" else [cutter]
    last = steps[-1] if steps else {}
    if last.get("type") != "ByteLevel" or last.get("add_prefix_space", True):
        raise NotFastError("its text is not cut into bytes as they are (pre_tokenizer)")
    uses_regex = last.get("use_regex", True)
    if len(steps) == 1 and uses_regex:
        return GPT2_PATTERN
    if len(steps) == 2 and not uses_regex and steps[0].get("type") == "Split":
        pattern = (steps[0].get("pattern") or {}).get("Regex")
        if pattern and steps[0].get("behavior") == "Isolated" and not steps[0].get("invert"):
            return pattern
    raise NotFastError("its text is not cut by one regular expression (pre_tokenizer)")


def _ranks(model: dict[str, Any]) -> dict[str, int]:
    """Rank of each token that tiktoken may make: bytes first, then by the merge that makes it.

    tiktoken merges two neighbours wherever their concatenation is a token, the library only where the pair is
    a merge. What happens inside a stretch of text that no merge has crossed does not depend on the rest, so
    neighbours that make up token t have been reached just as they are when t alone is encoded: as its last
    two parts. If t alone is encoded to t, these two are the pair of its merge, and the programs agree. If
    not, the library never makes t by merging, and it must not be among the ranks. With `ignore_merges` both
    take a piece that is a token whole: then t may stay, unless two parts are what is left of t alone.
    """
    changes_words = model.get("continuing_subword_prefix") or model.get("end_of_word_suffix")
    if model.get("type") != "BPE" or changes_words:
        raise NotFastError("its model is not byte-level BPE")
    symbols = byte_symbols()
    vocabulary: dict[str, int] = model["vocab"]
    if not vocabulary.keys() >= set(symbols):
        raise NotFastError("its vocabulary lacks some bytes")
    ranked = dict.fromkeys(symbols)
    last = None
    for left, right in merges_of(model):
        if left + right in ranked and left + right != last:
            raise NotFastError("merges of one token have ranks with other tokens between them")
        last = left + right
        ranked[last] = None
    whole_pieces = bool(model.get("ignore_merges"))
    if whole_pieces:
        known = set(symbols)
        ranked |= dict.fromkeys(token for token in vocabulary if set(token) <= known and token)
    merge = model_only(model | {"ignore_merges": False})
    kept = []
    for token in ranked:
        parts = len(merge.tokenize(token))
        if whole_pieces and parts == 2:
            raise NotFastError(f"it never merges the parts of its token {token!r}")
        if parts == 1 or whole_pieces:
            kept.append(token)
    return {token: rank for rank, token in enumerate(kept)}


@functools.cache  # a success, that is: what raises is not kept
def _check_pattern(pattern: str) -> None:
    """Raises NotFastError where the two regex engines do not cut alike."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers

    symbols = byte_symbols()
    vocabulary = {symbol: byte for byte, symbol in enumerate(symbols)}
    for near in sorted(set(CONTEXT.encode())):
        for symbol in symbols:
            # A token for every two bytes of which one is of the context: ids show whether they were cut.
            for pair in (symbols[near] + symbol, symbol + symbols[near]):
                vocabulary.setdefault(pair, len(vocabulary))
    merges = [(token[0], token[1]) for token in vocabulary if len(token) == 2]
    slow = Tokenizer(models.BPE(vocabulary, merges))
    try:
        cut = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    except Exception as error:  # the library raises bare Exception
        raise NotFastError(f"its pattern is refused ({error})") from error
    bytes_only = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    slow.pre_tokenizer = pre_tokenizers.Sequence([cut, bytes_only])
    fast = _encoder(pattern, vocabulary, vocabulary)
    for text in pattern_texts():
        expected, (got,) = slow.encode(text, add_special_tokens=False).ids, fast.encode([text])
        if got is not None and got.tolist() != expected:
            raise NotFastError("tiktoken's regular expressions cut its pattern's pieces otherwise")
