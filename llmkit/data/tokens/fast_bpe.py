"""Byte-level BPE by tiktoken: about ten times as fast as Hugging Face's library, where it gives the same ids.

Three things decide the ids of a text, and each agrees for a reason of its own:

- the merges: compared when the encoder is built, for the vocabulary at hand (`_ranks`);
- the pieces that a regular expression cuts a text into: only those of `PATTERNS` are taken, on which the two
  regex engines were compared over all of Unicode (tests/data/tokens/test_patterns.py);
- the composed form (NFC) that some tokenizers bring a text into first: a text that has it already, by
  Python's tables, is left as it is by the library's, which are of an older Unicode (the same tests).

With `PATTERNS["gpt2"]` the text "it's 12" is cut into "it", "'s" and " 12". Where the merges are (i, t), (t,
') and (1, 2), with the ids 256 to 258, it becomes [256, 39, 115, 32, 258]: no merge joins what lies in two
pieces.

A text that tiktoken gives up on (about a hundred thousand spaces in a row), or that is not composed, is left
to the library.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from tokenizers import Tokenizer as HFTokenizer

from llmkit.data.tokens.tokenizer_json import byte_symbols

if TYPE_CHECKING:
    from tiktoken import Encoding

_CASED = (  # a word of o200k: upper case, then lower case; either may be missing
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+%s"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*%s"
)
_CONTRACTED = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"

PATTERNS = {
    "llmkit": (
        r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+(?:[\r\n]+[ \t]*)?|\s*[\r\n]+[ \t]*"
        r"|\s+(?!\S)|\s+"
    ),
    "gpt2": r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    "llama3": (
        _CONTRACTED + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
        r"|\s+(?!\S)|\s+"
    ),
    "qwen2": (
        _CONTRACTED + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
        r"|\s+(?!\S)|\s+"
    ),
    "qwen3.5": (
        _CONTRACTED + r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+"
        r"|\s+(?!\S)|\s+"
    ),
    "o200k": (
        _CASED % (_CONTRACTED + "?", _CONTRACTED + "?")
        + r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
    "tekken": (_CASED % ("", "") + r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"),
}
"""Regular expressions that cut a text into the pieces inside which tokens are merged, by name.

llmkit's is that of cl100k_base (GPT-4), but a line's end, also after signs, takes the next line's indentation
along, so that ":\\n        " can be one token. With 4096 tokens on Python's library a token then holds 3.82
held-out bytes; 3.58 with the rules of cl100k_base, 3.55 with those of GPT-2. The others are as they stand in
the published tokenizer.json of GPT-2, Llama 3, Qwen2 to Qwen3, Qwen3.5, gpt-oss (o200k_base) and Mistral Nemo
(tekken).
"""


class NotFastError(Exception):
    """The fast encoder cannot stand in; the message says why."""


class TiktokenEncoder:
    """Ids of plain text, by tiktoken; releases Python's lock while it works.

    encoding: its ids are ranks. ids: the vocabulary's id of each rank, (ranks,) int32. lengths: its bytes,
    (ranks,) int64. composes: the tokenizer brings texts into their composed form (NFC).
    """

    def __init__(self, encoding: Encoding, ids: np.ndarray, lengths: np.ndarray, composes: bool) -> None:
        self._encoding, self._ids, self._lengths, self._composes = encoding, ids, lengths, composes

    def encode(self, texts: Sequence[str]) -> list[np.ndarray | None]:
        """Ids of each text, (count,) int32; None where the library has to do it.

        Raises UnicodeEncodeError for a lone surrogate.
        """
        given = [self._encode_to_ranks(text) for text in texts]
        usable = [ranks for ranks in given if ranks is not None]
        # All texts at once: for one alone numpy's calls take a tenth of the time.
        ranks = np.concatenate(usable) if usable else np.zeros(0, dtype=np.int64)
        ids, ends = self._ids.take(ranks), np.concatenate(([0], self._lengths.take(ranks).cumsum()))
        found: list[np.ndarray | None] = []
        start = 0
        for text, of_text in zip(texts, given, strict=True):
            if of_text is None:
                found.append(None)
                continue
            end = start + of_text.size
            size = len(text) if text.isascii() else len(text.encode())
            # Bytes are missing where the pattern does not match a character.
            found.append(ids[start:end] if ends[end] - ends[start] == size else None)
            start = end
        return found

    def _encode_to_ranks(self, text: str) -> np.ndarray | None:
        if self._composes and not (text.isascii() or unicodedata.is_normalized("NFC", text)):
            return None
        try:
            return self._encoding.encode_to_numpy(text, disallowed_special=())
        except UnicodeEncodeError:
            raise
        except ValueError:  # the regex engine ran into its limits
            return None


class BytesEncoder:
    """Ids that are the bytes themselves: "aé" is [97, 195, 169]."""

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
        _pattern(spec)
        _ranks(spec["model"])
        return not _composes(spec)
    except NotFastError:
        return False


def build_tiktoken(spec: dict[str, Any]) -> TiktokenEncoder:
    """The encoder of a tokenizer.json; raises NotFastError where tiktoken is not known to agree."""
    composes, pattern = _composes(spec), _pattern(spec)
    if pattern not in PATTERNS.values():
        known = ", ".join(PATTERNS)
        raise NotFastError(f"its text is cut by another regular expression than those of {known}")
    return encoder_of(pattern, _ranks(spec["model"]), spec["model"]["vocab"], composes)


def encoder_of(
    pattern: str, ranks: dict[str, int], vocabulary: dict[str, int], composes: bool = False
) -> TiktokenEncoder:
    """tiktoken with this pattern. ranks: of the tokens that it may make, from 0. vocabulary: their ids."""
    from tiktoken import Encoding

    byte_of = {symbol: byte for byte, symbol in enumerate(byte_symbols())}
    ranked = {bytes(byte_of[symbol] for symbol in token): rank for token, rank in ranks.items()}
    # Never allowed in a text, so never found; without any, tiktoken tries one at every character.
    unused = {"\ufdd0unused\ufdd0": len(ranks)}
    encoding = Encoding("llmkit", pat_str=pattern, mergeable_ranks=ranked, special_tokens=unused)
    ids = np.array([vocabulary[token] for token in ranks], dtype=np.int32)
    lengths = np.array([len(content) for content in ranked], dtype=np.int64)
    return TiktokenEncoder(encoding, ids, lengths, composes)


def _composes(spec: dict[str, Any]) -> bool:
    """Whether texts are brought into their composed form (NFC) before anything else, and not changed more."""
    normalizer = spec.get("normalizer")
    if normalizer not in (None, {"type": "NFC"}):
        raise NotFastError("it changes the text before encoding (a normalizer)")
    return normalizer is not None


def _pattern(spec: dict[str, Any]) -> str:
    """The regular expression that cuts a text into pieces; raises NotFastError where it is cut otherwise."""
    cutter = spec.get("pre_tokenizer") or {}
    steps = cutter.get("pretokenizers", []) if cutter.get("type") == "Sequence" else [cutter]
    last = steps[-1] if steps else {}
    if last.get("type") != "ByteLevel" or last.get("add_prefix_space", True):
        raise NotFastError("its text is not cut into bytes as they are (pre_tokenizer)")
    uses_regex = last.get("use_regex", True)
    if len(steps) == 1 and uses_regex:
        return PATTERNS["gpt2"]
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

    Merges (b, c), (a, b), (ab, c): "abc" alone becomes a, bc, so abc gets no rank. tiktoken would merge a,
    bc.
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
    for merge in model.get("merges") or []:  # older files hold "left right", newer ones [left, right]
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        if left + right in ranked and left + right != last:
            raise NotFastError("merges of one token have ranks with other tokens between them")
        last = left + right
        ranked[last] = None
    whole_pieces = bool(model.get("ignore_merges"))
    if whole_pieces:
        known = set(symbols)
        ranked |= dict.fromkeys(token for token in vocabulary if set(token) <= known and token)
    bare = {"version": "1.0", "model": model | {"ignore_merges": False}, "added_tokens": []}
    merging = HFTokenizer.from_str(json.dumps(bare)).model
    kept = []
    for token in ranked:
        parts = len(merging.tokenize(token))
        if whole_pieces and parts == 2:
            raise NotFastError(f"it never merges the parts of its token {token!r}")
        if parts == 1 or whole_pieces:
            kept.append(token)
    return {token: rank for rank, token in enumerate(kept)}
