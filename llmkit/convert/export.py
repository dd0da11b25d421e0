"""`llmkit export`: a trained model in Hugging Face's format."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch

from llmkit.checkpoint.aside import built_aside, refuse_existing, require_room
from llmkit.checkpoint.files import write_file
from llmkit.command_line import print_json, printer, show
from llmkit.config.shape import ModelShape
from llmkit.config.show import to_yaml
from llmkit.config.stored import read_stored
from llmkit.convert.card import CARD, SETTINGS, model_card
from llmkit.convert.companions import config_files, tokenizer_files
from llmkit.convert.proof import cannot_prove, prove
from llmkit.convert.shards import Planned, plan, split, write_shards
from llmkit.errors import UserError
from llmkit.hf.choose import architecture_for
from llmkit.weights import AdaptedCheckpoint, AdaptedFolder, Weights, model_of, open_weights

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def export_command(
    path: Path, out: Path, *, dtype: str | None, max_shard_size: int, check: bool, ema: bool = False,
    as_json: bool = False,
) -> int:  # fmt: skip
    """`llmkit export`: writes a folder that transformers, vLLM and others load, with a model card.

    dtype: to which weights are rounded; None: as they are stored, those with adapters as their base is.
    max_shard_size: bytes of a file. check: compare logits and ids with those of transformers, where it is
    installed and there is memory. ema: see `open_weights`. as_json: an object tells what was written.

    Raises UserError where no class of transformers can express the model, naming every setting.
    """
    refuse_existing(out)
    weights, rounded = open_weights(path, ema=ema), DTYPES[dtype] if dtype else None
    if rounded is None and isinstance(weights, AdaptedCheckpoint | AdaptedFolder):
        rounded = _type_of(weights.base)
    shape = exported_shape(weights)
    tokenizer = weights.tokenizer()
    architecture = architecture_for(shape, json.loads(tokenizer.files()["tokenizer.json"]))
    filled = architecture.filled(shape)
    tensors = plan(weights, architecture.naming.stored(filled.parameters()), rounded)
    shards, size, main_type = (
        split(tensors, max_shard_size),
        sum(each.nbytes for each in tensors),
        _main_type(tensors),
    )
    require_room(out, size)
    unproved = cannot_prove(shape) if check else "it was not asked for (--no-check)"
    files = config_files(architecture, filled, main_type, tokenizer)
    files |= tokenizer_files(tokenizer, shape.max_position_embeddings)
    config = read_stored(weights.config, weights.origin, printer(as_json)) if weights.config else None
    if config is not None:
        files[SETTINGS] = to_yaml(config).encode()
    with built_aside(out) as folder:
        write_shards(folder, weights, shards)
        for name, content in files.items():
            write_file(folder / name, [memoryview(content)])
        proof = None if unproved else str(prove(weights, shape, tokenizer, folder, rounded))
        card = model_card(weights, config, shape, architecture, main_type, tokenizer, proof)
        write_file(folder / CARD, [memoryview(card.encode())])
    kind = str(main_type).removeprefix("torch.")
    if as_json:
        print_json({
            "path": str(out), "source": str(weights.path), "class": architecture.class_name,
            "parameters": shape.num_parameters, "dtype": kind, "bytes": size, "weight_files": len(shards),
            "proof": proof, "unproved": unproved,
        })  # fmt: skip
        return 0
    show(f"exported   {weights.path}")
    show(f"to         {out}: {architecture.class_name}, {shape.num_parameters:,} weights in {kind}")
    show(f"files      {len(shards)} of weights, {size / 1e9:.3f} GB; {', '.join(sorted([*files, CARD]))}")
    show(f"proof      {proof or f'none: {unproved}'}")
    return 0


def exported_shape(weights: Weights) -> ModelShape:
    """The model of weights that are to be exported. Raises UserError for one that is not our own."""
    shape = model_of(weights)
    if not isinstance(shape, ModelShape):
        raise UserError(
            f"{weights.path}: its model is of the type {shape.type}, which a plugin defines; only llmkit's "
            "own can be exported"
        )
    return shape


def _type_of(weights: Weights) -> torch.dtype:
    """The type in which weights are stored, by the first of them."""
    name = next(iter(weights.names()))
    return weights.read(name, tuple((0, 1) for _ in weights.shape(name))).dtype


def _main_type(tensors: Sequence[Planned]) -> torch.dtype:
    """The type of most of the bytes."""
    counted = Counter[torch.dtype]()
    for tensor in tensors:
        counted[tensor.dtype] += tensor.nbytes
    return counted.most_common(1)[0][0]
