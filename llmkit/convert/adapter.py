"""`llmkit export --adapter`: the adapters of a run as a folder of PEFT."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from llmkit.checkpoint.aside import built_aside, refuse_existing
from llmkit.checkpoint.files import write_file
from llmkit.command_line import print_json, show
from llmkit.config.adapters import trained_tensors
from llmkit.config.parameters import count_elements
from llmkit.convert.companions import tokenizer_files
from llmkit.convert.export import exported_shape
from llmkit.convert.proof import cannot_prove, prove_adapter
from llmkit.errors import UserError
from llmkit.extras import missing_extra
from llmkit.hf.choose import architecture_for
from llmkit.hf.folder import HFFolder, is_hf_folder
from llmkit.hf.peft_folder import write_peft_folder
from llmkit.parallel.slices import Shape
from llmkit.weights import AdaptedCheckpoint, Weights, open_weights

ROWS = 4096
"""Rows of a tensor that are compared at a time."""


def export_adapter_command(
    path: Path, out: Path, *, base: Path | None, check: bool, ema: bool = False, as_json: bool = False
) -> int:
    """Writes the adapters of a run as PEFT loads them onto their base model.

    base: the base model in Hugging Face's format, which must hold the weights that the run adapted; None:
    that is where the run took them from. check: compare logits with those of PEFT, where it is installed.
    ema: see `open_weights`. as_json: an object tells what was written.
    """
    refuse_existing(out)
    weights = open_weights(path, ema=ema)
    if not isinstance(weights, AdaptedCheckpoint):
        raise UserError(f"{path}: no adapters were trained there (train.lora), so there are none to export")
    shape, tokenizer = exported_shape(weights), weights.tokenizer()
    folder_of_base = _base(weights, base)
    adapters, theirs = weights.adapters, HFFolder(folder_of_base)
    lora = adapters.settings
    unproved = "it was not asked for (--no-check)" if not check else cannot_prove(shape)
    unproved = unproved or missing_extra("hf", "peft")
    with built_aside(out) as folder:
        write_peft_folder(
            folder, shape, theirs.architecture, lora, adapters.layers, adapters.matrices,
            str(folder_of_base.absolute()),
        )  # fmt: skip
        for name, content in tokenizer_files(tokenizer, shape.max_position_embeddings).items():
            write_file(folder / name, [memoryview(content)])
        merged = replace(weights, base=theirs, rounded=False)
        proof = None if unproved else prove_adapter(merged, shape, tokenizer, folder, folder_of_base)
    count = count_elements(trained_tensors(shape.tensors, lora))
    if as_json:
        print_json({
            "path": str(out), "source": str(weights.path), "base": str(folder_of_base),
            "parameters": count, "rank": lora.rank, "base_form": lora.base_form,
            "proof": proof and str(proof), "unproved": unproved,
        })  # fmt: skip
        return 0
    show(f"exported   {weights.path}")
    show(f"to         {out}: an adapter of {count:,} weights, rank {lora.rank}, for {folder_of_base}")
    if lora.base_form is not None:
        show(f"note       it was trained with its base in {lora.base_form} (train.lora.quantize_base)")
    show(f"proof      {proof or f'none: {unproved}'}")
    return 0


def _base(weights: AdaptedCheckpoint, asked: Path | None) -> Path:
    """The base model in Hugging Face's format. Raises UserError where there is none, or can be none, or it is
    another one."""
    if asked is None:
        if isinstance(weights.base, HFFolder):
            return weights.base.path
        architecture_for(exported_shape(weights.base))  # else no folder that could be written is of use
        raise UserError(
            f"{weights.path}: the base of its adapters, {weights.base.path}, is not in Hugging Face's "
            f"format; write it so first (llmkit export {weights.base.path} BASE), and name it by --base BASE"
        )
    if not is_hf_folder(asked):
        raise UserError(f"--base {asked}: is no folder with a model in Hugging Face's format")
    theirs = HFFolder(asked)
    for name in weights.base.names():
        if not _same(name, weights.base.shape(name), weights.base, theirs):
            raise UserError(
                f"--base {asked}: its {name} is not that of {weights.base.path}, to which the adapters "
                "belong; name an export of that"
            )
    return asked


def _same(name: str, shape: Shape, ours: Weights, theirs: HFFolder) -> bool:
    """Whether a tensor is the same in both, but for the rounding to the type it has there."""
    if name not in theirs.names() or theirs.shape(name) != shape:
        return False
    rest = tuple((0, size) for size in shape[1:])
    for first in range(0, shape[0], ROWS):
        region = ((first, min(first + ROWS, shape[0])), *rest)
        there = theirs.read(name, region)
        if not torch.equal(ours.read(name, region).to(there.dtype), there):
            return False
    return True
