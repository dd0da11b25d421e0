"""Whether transformers, loading an export, computes what llmkit does, and reads text into the same ids."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor

from llmkit.config.shape import ModelShape
from llmkit.data.tokens.hard_texts import HARD_TEXTS
from llmkit.data.tokens.tokenizer import Tokenizer
from llmkit.errors import RunFault, UserError
from llmkit.extras import missing_extra
from llmkit.inference import load_model
from llmkit.kernels.quantised import without_downloads
from llmkit.precision import PRECISIONS
from llmkit.weights import Weights

TOLERANCE = 1e-5
"""Largest difference of logits in fp32, as a norm relative to theirs."""
TOKENS = 128
"""Most tokens that are compared."""
MEMORY = 1.25
"""Memory that a comparison takes, as a multiple of the fp32 weights: of one model at a time."""
TEXT = """\
The quick brown fox jumps over the lazy dog. In 1998, 7 of 12 engineers said: "It's faster!" By 0.3 %, it was.

def mean(values):
    total = sum(values)  # may be empty
    return total / len(values) if values else 0.0

Zwölf Boxkämpfer jagen Viktor quer über den Deich. Le cœur déçu mais l'âme plutôt naïve. 日本語の文章。
"""


@dataclass(frozen=True)
class Proof:
    """What was compared. version: of transformers. difference: of the logits, ||ours - theirs|| / ||theirs||.

    tokens: compared. texts: on which the tokenizers agree.
    """

    version: str
    difference: float
    tokens: int
    texts: int

    def __str__(self) -> str:
        """In one line."""
        return (
            f"transformers {self.version} gives llmkit's logits: relative difference {self.difference:.1e} "
            f"in fp32 on {self.tokens} tokens; the same ids of {self.texts} hard texts"
        )


def cannot_prove(shape: ModelShape) -> str | None:
    """Why an export cannot be compared here; None where it can."""
    if missing := missing_extra("hf", "transformers"):
        return missing
    needed, free = MEMORY * 4 * shape.num_parameters, psutil.virtual_memory().available
    if needed > free:
        return f"it takes {needed / 1e9:.1f} GB of memory, and {free / 1e9:.1f} GB are free"
    return None


def prove(
    weights: Weights, shape: ModelShape, tokenizer: Tokenizer, folder: Path, dtype: torch.dtype | None
) -> Proof:
    """Compares an exported folder, as transformers loads it, with the weights that it was made of.

    dtype: to which the weights were rounded. Raises RunFault where they differ.
    """
    import transformers

    tokens = _tokens(tokenizer, shape)
    ours, theirs = _our_logits(weights, tokens, dtype), _their_logits(folder, tokens)
    difference = _difference(ours, theirs, "model", f"transformers {transformers.__version__}")
    texts = _compare_tokenizers(tokenizer, folder)
    return Proof(transformers.__version__, difference, tokens.shape[1], texts)


def prove_adapter(weights: Weights, shape: ModelShape, tokenizer: Tokenizer, folder: Path, base: Path) -> str:
    """Compares PEFT with an adapter's folder, on the model in `base`, with the merged weights; in one line.

    Raises RunFault where they differ.
    """
    with without_downloads():
        import peft

    tokens = _tokens(tokenizer, shape)
    ours, theirs = _our_logits(weights, tokens, None), _their_logits(base, tokens, adapter=folder)
    library = f"peft {peft.__version__}"
    difference = _difference(ours, theirs, "adapter", library)
    return (
        f"{library} gives llmkit's logits: relative difference {difference:.1e} in fp32 on "
        f"{tokens.shape[1]} tokens"
    )


def _tokens(tokenizer: Tokenizer, shape: ModelShape) -> Tensor:
    """The ids that are compared, (1, seq)."""
    ids = tokenizer.encode(TEXT)[: min(TOKENS, shape.max_position_embeddings)]
    return torch.from_numpy(ids).long()[None]


def _difference(ours: Tensor, theirs: Tensor, exported: str, library: str) -> float:
    """||ours - theirs|| / ||theirs|| of logits. Raises RunFault where rounding does not explain it.

    exported: what was, for the message. library: which computed `theirs`.
    """
    found = float((ours - theirs).norm() / theirs.norm())
    if not found <= TOLERANCE:
        raise RunFault(
            f"the exported {exported} does not compute what llmkit does: the logits of {library} differ by "
            f"{found:.1e} (relative norm; rounding makes at most {TOLERANCE:.0e}); nothing was written. "
            "Please report this, with the settings of the model; --no-check leaves the comparison out"
        )
    return found


@torch.inference_mode()
def _our_logits(weights: Weights, tokens: Tensor, dtype: torch.dtype | None) -> Tensor:
    """(seq, vocab) logits in fp32. Raises UserError where they are no numbers."""
    model: Any = load_model(weights, torch.device("cpu"), PRECISIONS["fp32"])
    if dtype is not None:
        for parameter in model.parameters():
            parameter.data = parameter.data.to(dtype).float()
    found: Tensor = model.head.logits(model.hidden(tokens))[0]
    if not found.isfinite().all():
        raise UserError(
            f"{weights.origin}: the logits of this model are no finite numbers, so its training broke down; "
            "nothing was written. Take an earlier checkpoint; --no-check exports it as it is"
        )
    return found


@torch.inference_mode()
def _their_logits(folder: Path, tokens: Tensor, adapter: Path | None = None) -> Tensor:
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    if adapter is not None:
        from peft import PeftModel

        with warnings.catch_warnings(action="ignore", category=FutureWarning):  # of peft to transformers
            model = PeftModel.from_pretrained(model, adapter)
    model.eval()
    found: Tensor = model(input_ids=tokens).logits[0]
    return found


def _compare_tokenizers(tokenizer: Tokenizer, folder: Path) -> int:
    """How many texts were compared. Raises RunFault for one that AutoTokenizer reads otherwise."""
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    texts = [text for text in (*HARD_TEXTS, TEXT) if not tokenizer.spelled_controls(text)]
    before, behind = tokenizer.added_by_others
    for text, ids in zip(texts, tokenizer.encode_batch(texts, threads=False), strict=True):
        alone = theirs(text, add_special_tokens=False, verbose=False)["input_ids"]
        whole = theirs(text, verbose=False)["input_ids"]
        if (alone, whole) != (ids.tolist(), [*before, *ids.tolist(), *behind]):
            raise RunFault(
                f"the exported tokenizer does not read text as this one does: {text[:60]!r}; nothing was "
                "written. Please report this, with the tokenizer.json; --no-check leaves the comparison out"
            )
    return len(texts)
