"""The text that `llmkit evaluate` reads: what the run held out, or other text that the user names."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from llmkit.checkpoint.read import Checkpoint
from llmkit.config import schema
from llmkit.config.heldout import nothing_held_out
from llmkit.config.load import Loaded, load
from llmkit.config.stored import read_stored
from llmkit.data.building.prepare import prepare
from llmkit.data.located import located, missing_paths
from llmkit.data.prepared import PreparedData
from llmkit.data.shards.reader import ShardReader
from llmkit.data.sources.formats import type_of_files
from llmkit.data.state import read_data_state
from llmkit.data.tokens.tokenizer import Tokenizer
from llmkit.errors import UserError
from llmkit.weights import Weights, model_of, read_model


def heldout_of_run(
    checkpoint: Checkpoint, config: schema.Config, tokenizer: Tokenizer, report: Callable[[str], None]
) -> PreparedData:
    """The run's data, of which only the held-out part must be unchanged.

    Relative paths are tried from where the run was started, and from where its folder lies now. Raises
    UserError where the files are not there, or the held-out text is another one.
    """
    bases = [*_bases(checkpoint, config), Path.cwd()]
    seen = [located(config.data, base) for base in bases]
    found = next((data for data in seen if not missing_paths(data)), None)
    if found is None:
        raise UserError(
            f"{checkpoint.path}: the data of the run are not there: {missing_paths(config.data)[0]} (looked "
            f"from {', '.join(dict.fromkeys(map(str, bases)))}); run this where they are, or name other data "
            "with --data"
        )
    data = prepare(found, report, tokenizer=tokenizer)
    _check_heldout(checkpoint, data)
    if not data.heldout:
        why = nothing_held_out(Loaded.of(config, "the run's settings").settings)
        raise UserError(f"{checkpoint.path}: nothing is held out: {why}; or name other data with --data")
    return data


def other_data(
    path: str, config: schema.Config, tokenizer: Tokenizer, report: Callable[[str], None]
) -> PreparedData:
    """Other text for a model of a run, in rows as the run reads them.

    path: a configuration (.yaml), whose held-out text is meant, or files of text, jsonl, parquet, arrow or
    shards, of which all is meant; records have the fields that the run's source of that type has.
    """
    rows = {
        "sequence_length": config.data.sequence_length,
        "document_masks": config.data.document_masks,
        "packing": "concatenate",
        "curriculum": [],
    }
    path = os.path.expanduser(path)
    if path.endswith((".yaml", ".yml")):
        loaded = load(path, read_model=read_model)
        data = prepare(loaded.config.data.model_copy(update=rows), report, tokenizer=tokenizer)
        if not data.heldout:
            raise UserError(f"--data {path}: nothing is held out: {nothing_held_out(loaded.settings)}")
        return data
    if not os.path.exists(path) and missing_paths(_only(config.data, path, "text")):
        raise UserError(f"--data {path}: there is no such file or folder")
    # Rows of two tokens: a text that does not fill a row of the run is evaluated, too.
    everything = rows | {"validation_fraction": 0.0, "sequence_length": 2}
    one = _only(config.data, path, type_of_files(path)).model_copy(update=everything)
    data = prepare(one, report, tokenizer=tokenizer)
    sources = (
        replace(source, heldout=source.stored if isinstance(source.stored, ShardReader) else None)
        for source in data.sources
    )
    return replace(data, sources=tuple(sources), sequence_length=config.data.sequence_length)


def settings_for(weights: Weights, other: str, report: Callable[[str], None]) -> schema.Config:
    """The settings by which `other_data` is read: those of the run that made the weights.

    Where no run made them: the defaults, in rows of at most as many tokens as the model reads.
    """
    if weights.config:
        return read_stored(weights.config, weights.origin, report)
    longest = model_of(weights).max_position_embeddings
    length = min(schema.Data.model_fields["sequence_length"].default, longest)
    data = {"sources": [{"type": "text", "path": other}], "sequence_length": length}
    return schema.Config.model_validate({"data": data})


def _bases(checkpoint: Checkpoint, config: schema.Config) -> list[Path]:
    """The folders that relative paths of the run may start from: by its run folder, and as recorded."""
    found = []
    below = Path(os.path.normpath(Path(config.run.dir) / config.run.name / "checkpoints"))
    here = Path(os.path.abspath(checkpoint.path)).parent
    if not below.is_absolute() and here.parts[-len(below.parts) :] == below.parts:
        found.append(Path(*here.parts[: -len(below.parts)]))
    if isinstance(started := checkpoint.state.get("started_in"), str) and os.path.isdir(started):
        found.append(Path(started))
    return found


def _only(data: schema.Data, path: str, kind: str) -> schema.Data:
    """The data of one path, read like the run's source of that type, if it has one."""
    like = next((spec for spec in data.sources if spec.type == kind), None)
    spec = like or schema.Source.model_validate({"type": kind, "path": path})
    update = {"path": path, "name": "data", "weight": 1.0, "live": False, "heldout_path": None}
    return data.model_copy(update={"sources": [spec.model_copy(update=update | {"max_epochs": None})]})


def _check_heldout(checkpoint: Checkpoint, data: PreparedData) -> None:
    """Raises UserError where the held-out text is not that of the run; its training text may differ."""
    then = read_data_state(checkpoint.state["data"]).fingerprint
    now = data.fingerprint
    held = {source.name: source.heldout for source in then.sources}
    changes = [
        f"source {source.name} has other held-out text"
        for source in now.sources
        if held.get(source.name) != source.heldout
    ]
    if changes:
        raise UserError(
            f"{checkpoint.path}: this is not what the run held out: {'; '.join(changes)}; "
            "put the files back that it was trained with, or name other data with --data"
        )
