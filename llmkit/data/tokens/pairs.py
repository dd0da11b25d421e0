"""Pairs of sequences as one document, so that a row of the stream is a pair.

A row of 2 L + 1 tokens at a sequence length of L: the end-of-text before the document, the chosen sequence,
filled up with end-of-text, and the rejected one, filled up too. Tokens 0 .. L are inputs and labels of the
chosen sequence, tokens L .. 2 L those of the rejected one: token L is an end-of-text, as token 0 is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from llmkit.data.sources.records import LeftOut

if TYPE_CHECKING:
    from llmkit.data.tokens.encode import Encoded

TOO_LONG = "longer than data.sequence_length"
"""Reason to leave a pair out. It is not shortened: an answer without its end is another answer."""


def join_pair(chosen: Encoded, rejected: Encoded, length: int, end_of_text: int) -> Encoded | LeftOut:
    """The document of a pair, 2 * length - 1 tokens; LeftOut where a sequence does not fit.

    length: inputs of a sequence; the first is the end-of-text before it. end_of_text: its id.
    """
    longest = 1 + max(chosen.tokens.size, rejected.tokens.size)
    if longest > length:
        return LeftOut(TOO_LONG, f"the prompt with an answer takes {longest} tokens, more than {length}")
    tokens = np.full(2 * length, end_of_text, dtype=np.int32)
    targets = np.zeros(2 * length, dtype=bool)
    for start, half in ((0, chosen), (length, rejected)):
        end = start + half.tokens.size
        tokens[start:end] = half.tokens
        targets[start:end] = True if half.targets is None else half.targets
        targets[end] = half.end_is_target
    size = chosen.text_bytes + rejected.text_bytes
    return chosen._replace(
        tokens=tokens[:-1], targets=targets[:-1], text_bytes=size, end_is_target=bool(targets[-1])
    )
