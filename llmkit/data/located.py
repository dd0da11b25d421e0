"""Settings of the data seen from another folder than the one that their relative paths start from."""

from __future__ import annotations

import glob
import os
from pathlib import Path

from llmkit.config import schema
from llmkit.data.sources.urls import is_url


def located(config: schema.Data, base: Path) -> schema.Data:
    """The same data with local paths that do not depend on the working directory.

    base: the folder that relative paths start from. URLs and absolute paths stay.
    """
    tokenizer = config.tokenizer.model_copy(
        update={name: _at(base, getattr(config.tokenizer, name)) for name in ("path", "chat_template")}
    )
    return config.model_copy(
        update={
            "tokenizer": tokenizer,
            "sources": [_source(spec, base) for spec in config.sources],
            "cache_dir": _at(base, config.cache_dir),
        }
    )


def missing_paths(config: schema.Data) -> list[str]:
    """The local paths of sources at which there is nothing, as they stand in the settings."""
    paths: list[str] = []
    for spec in config.sources:
        paths += [spec.path] if isinstance(spec.path, str) else spec.path or []
        paths += [spec.heldout_path] if spec.heldout_path else []
    return [path for path in paths if not is_url(path) and not _is_there(path)]


def _source(spec: schema.Source, base: Path) -> schema.Source:
    path = [_at(base, one) for one in spec.path] if isinstance(spec.path, list) else _at(base, spec.path)
    changed = {"path": path, "heldout_path": _at(base, spec.heldout_path)}
    if spec.dataset is not None and (base / spec.dataset).is_dir():  # else it is a hub id
        changed["dataset"] = _at(base, spec.dataset)
    return spec.model_copy(update=changed)


def _at(base: Path, path: str | None) -> str | None:
    if path is None or is_url(path):
        return path
    return os.path.join(base, path)


def _is_there(path: str) -> bool:
    """Whether a path, a pattern, or the common beginning of Megatron's two files stands for something."""
    return os.path.exists(path) or os.path.exists(f"{path}.idx") or bool(glob.glob(path, recursive=True))
