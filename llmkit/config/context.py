"""Context parallelism: the positions of a row that each rank has, the form, and what does not go with it."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from math import lcm
from typing import TYPE_CHECKING, Literal

from llmkit.config.mistakes import Mistake
from llmkit.config.model_section import Model
from llmkit.config.schema import Config
from llmkit.config.settings import Settings

if TYPE_CHECKING:
    from llmkit.batch import Ranges

Form = Literal["ulysses", "ring"]
_SIZE = "parallel.context_parallel_size"
_FORM = "parallel.context_parallel_form"
WIDEST_FUSED, MULTIPLE_FUSED = 256, 8
"""Channels of a head that PyTorch's flash attention for a GPU takes, and what they are a multiple of."""
OLDEST_FUSED = (8, 0)
"""Compute capability from which on NVIDIA's GPUs have it."""
SHORT_PIECE = 1024
"""Tokens of a piece below which a note is given: the exchanges of attention are then many small messages."""


def row_pieces(length: int, size: int, form: Form) -> list[Ranges]:
    """The positions of each of `size` ranks that share rows of `length` tokens.

    ulysses: consecutive ones. ring: of 2 * size chunks the r-th from the beginning and the r-th from the end
    ("zigzag"), so that all ranks have about as many pairs of a query and a key before it. Sizes differ by at
    most one: no row is padded.
    """
    if form == "ulysses":
        return [(piece,) for piece in _evenly(length, size)]
    chunks = _evenly(length, 2 * size)
    return [(chunks[rank], chunks[-1 - rank]) for rank in range(size)]


def _evenly(length: int, parts: int) -> list[tuple[int, int]]:
    """Consecutive ranges that cover 0 .. length - 1; the first ones have one more if parts leave a rest."""
    small, larger = divmod(length, parts)
    return list(pairwise(part * small + min(part, larger) for part in range(parts + 1)))


def ulysses_heads(heads: int, kv_heads: int, size: int) -> tuple[int, int]:
    """Of attention's heads and key and value heads, how many each of `size` ranks computes under Ulysses.

    The ranks divide the heads. Key and value heads are repeated until they divide these, too.
    """
    return heads // size, lcm(kv_heads, size) // size


def ring_is_fused(device: str, capability: tuple[int, int] | None, sixteen_bits: bool, head_dim: int) -> bool:
    """Whether a device has a fused kernel for blocks of a ring that have no masks; others' scores are made.

    capability: of NVIDIA's GPUs; None of all else. sixteen_bits: whether attention computes in these.
    """
    if device == "cpu":
        return True
    fits = sixteen_bits and head_dim <= WIDEST_FUSED and head_dim % MULTIPLE_FUSED == 0
    return fits and capability is not None and capability >= OLDEST_FUSED


def context_form(config: Config) -> Form:
    """`parallel.context_parallel_form`; for auto Ulysses where each rank gets heads of its own, else ring."""
    if config.parallel.context_parallel_form != "auto":
        return config.parallel.context_parallel_form
    return "ring" if heads_left(config) else "ulysses"


def heads_left(config: Config) -> int:
    """Heads of a tensor-parallel rank that are left over where its context ranks get equally many."""
    parallel, model = config.parallel, config.model
    if not isinstance(model, Model) or model.num_attention_heads % parallel.tensor_parallel_size:
        return 0  # another check says so
    return model.num_attention_heads // parallel.tensor_parallel_size % parallel.context_parallel_size


def form_reason(config: Config) -> str:
    """Why the form is what it is, as in "8 heads a rank are divided"."""
    if config.parallel.context_parallel_form != "auto":
        return "as given"
    assert isinstance(config.model, Model)
    heads = config.model.num_attention_heads // config.parallel.tensor_parallel_size
    which = "heads of a rank" if config.parallel.tensor_parallel_size > 1 else "heads"
    size = config.parallel.context_parallel_size
    divides = "divides" if heads % size == 0 else "does not divide"
    return f"{size} {divides} the {heads} {which}"


def check_context(s: Settings) -> Iterator[Mistake]:
    """Checks that rows can be shared as the settings ask."""
    config, size = s.config, s.config.parallel.context_parallel_size
    if size == 1:
        return
    model, form = config.model, context_form(config)
    if not isinstance(model, Model):
        note = "only llmkit's own model shares rows between ranks; set the size to 1"
        yield s.mistake("{0} does not go with {1}", _SIZE, "model.type", note=note)
        return
    if config.train.objective != "causal_lm" or config.data.has_pairs:
        note = "the loss of a pair needs all of both its sequences on a rank; set the size to 1"
        yield s.mistake("{0} does not go with {1}", _SIZE, "train.objective", note=note)
    if model.moe.num_experts and model.moe.capacity_factor is not None:
        note = "an expert takes choices of a whole row; leave the capacity out, or set the size to 1"
        yield s.mistake("{0} does not go with {1}", "model.moe.capacity_factor", _SIZE, note=note)
    yield from _check_form(s, model, form)
    yield from _check_length(s, form)


def _check_form(s: Settings, model: Model, form: Form) -> Iterator[Mistake]:
    """Checks that the form can compute the model's attention."""
    asked, heads = s.config.parallel.context_parallel_form, heads_left(s.config)
    tensor = s.config.parallel.tensor_parallel_size
    paths = (_SIZE, "model.num_attention_heads")
    each = f" over {tensor} tensor-parallel ranks" if tensor > 1 else ""
    if form == "ulysses" and heads:
        note = "it gives each rank heads of its own; set the form to ring or auto, or choose another size"
        yield s.mistake(f"{{0}} does not divide {{1}}{each}, as {{2}} needs it", *paths, _FORM, note=note)
    if form == "ulysses":
        return
    chosen = f" (auto is ring here, as {form_reason(s.config)})" if asked == "auto" else ""
    if model.attention_dropout > 0.0:
        note = "set the dropout to 0, or choose a size that divides the heads, and the form ulysses"
        what = f"{{0}} does not go with {{1}}{chosen}: a ring has no dropout of attention weights"
        yield s.mistake(what, "model.attention_dropout", _FORM, note=note)
    if s.config.kernels.operators.attention != "auto":
        note = "a ring computes attention block by block in a form of its own; leave the operator auto"
        path = "kernels.operators.attention"
        yield s.mistake(f"{{0}} does not go with {{1}}{chosen}", path, _FORM, note=note)


def _check_length(s: Settings, form: Form) -> Iterator[Mistake]:
    """Checks that every rank gets a piece of a row, and tensor-parallel ranks equal parts of that."""
    parallel, length = s.config.parallel, s.config.data.sequence_length
    size, tensor = parallel.context_parallel_size, parallel.tensor_parallel_size
    if length < 2 * size:
        note = f"a row needs at least {2 * size} tokens; choose longer rows, or fewer ranks"
        yield s.mistake("{0} is too short for {1}", "data.sequence_length", _SIZE, note=note)
        return
    sizes = {sum(stop - start for start, stop in ranges) for ranges in row_pieces(length, size, form)}
    if parallel.sequence_parallel and any(each % tensor for each in sizes):
        what = "{0}: its pieces for {1} are not divisible by {2}, over which {3} cuts them"
        paths = ("data.sequence_length", _SIZE, "parallel.tensor_parallel_size", "parallel.sequence_parallel")
        yield s.mistake(what, *paths, note=f"choose a multiple of {size * tensor}")


def context_remarks(s: Settings) -> Iterator[str]:
    """Yields notes on a form without effect, and on pieces that are too small to gain anything."""
    parallel, length = s.config.parallel, s.config.data.sequence_length
    size = parallel.context_parallel_size
    if size == 1:
        if parallel.context_parallel_form != "auto":
            yield f"{s.describe(_FORM)} has no effect: {s.describe(_SIZE)}"
    elif length // size < SHORT_PIECE:
        yield (
            f"{s.describe(_SIZE)} leaves each rank {length // size:,} of the tokens of a row "
            f"({s.describe('data.sequence_length')}): every layer waits for small messages between these "
            "ranks, in both passes. If a whole row fits into the memory of one, the size 1 trains as many "
            "rows at once without them"
        )
