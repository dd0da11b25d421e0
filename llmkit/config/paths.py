"""Settings that are paths: their checks, and the expansion of ~."""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Callable, Iterator
from typing import Any

from llmkit.config.mistakes import UTF8_LOCALE, Mistake, access_in_url
from llmkit.config.schema import PRETOKENIZED, Config
from llmkit.config.section import Section
from llmkit.config.settings import Settings

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):/")
_ON_A_DISK = "folders are written and locked here: name one on a disk (or mount the store), and copy it later"
_NO_FILES = "download the file, or name a tokenizer of the hub (type: hub)"
_MODELS = ("train.init_from", "train.dpo.reference")
"""The settings that name trained weights."""
_LETTERS = "letters that no file name can have in this process, whose locale is {}"
_MAPPED = (
    "these files are mapped into memory: download them, or read text from there (type jsonl, parquet ...)"
)


def check_paths(s: Settings) -> Iterator[Mistake]:
    """What no path can be, URLs that give access, and URLs where only a path will do."""
    if encoding := _beyond_locale(_here()):
        what = f"the name of the current folder has {_LETTERS.format(encoding)}"
        yield s.mistake(what, "run.dir", note=UTF8_LOCALE)
        return
    for path, only_local in _path_settings(s.config):
        value = s.value(path)
        texts = [text for text in (value if isinstance(value, list) else [value]) if text is not None]
        scheme = next(filter(None, map(_SCHEME.match, texts)), None)
        if any("\0" in text for text in texts):
            yield s.mistake("{0} has a NUL character in it, which no path can have", path)
        elif encoding := next(filter(None, map(_beyond_locale, texts)), ""):
            yield s.mistake(f"{{0}} has {_LETTERS.format(encoding)}", path, note=UTF8_LOCALE)
        elif access := next(filter(None, map(access_in_url, filter(None, texts))), ""):
            note = (
                "the configuration is copied into the run's folder and checkpoints: name the file without it "
                "(keys of s3://, gs:// and hf:// come from the environment), or download it"
            )
            yield s.mistake(f"{path} has a URL in it with {access}", path, note=note)
        elif scheme and only_local:
            note = "leave out file://" if scheme[1].lower() == "file" else only_local
            yield s.mistake("{0} is a URL, and only a path will do", path, note=note)
        elif scheme and not scheme.string.startswith(f"{scheme[0]}/"):
            yield s.mistake(f"{{0}} looks like a URL with one / missing: {scheme[1]}://", path)
        elif path == "checkpoint.copy_to" and texts and (not scheme or set("?#") & set(texts[0])):
            note = "such as s3://bucket/runs, https://host/runs or file:///mnt/runs; the run's name is added"
            yield s.mistake("{0} must be a URL without ? and #", path, note=note)
        elif isinstance(value, list) and "" in value:
            yield s.mistake("{0} has an empty path in it", path)
        elif value == "" and path in ("run.dir", "data.cache_dir", *_MODELS):
            yield s.mistake("{0} is empty", path, note='the current folder is "."')


def _beyond_locale(path: str) -> str:
    """The encoding of file names in this process where a path cannot be trusted to it; "" where it can.

    Names on a disk are bytes, of UTF-8 as in this configuration.
    """
    encoding = sys.getfilesystemencoding()
    return "" if encoding == "utf-8" or path.isascii() else encoding


def _here() -> str:
    with contextlib.suppress(OSError):  # the folder is gone
        return os.getcwd()
    return ""


def with_home(config: Config) -> Config:
    """The settings with the home folder for ~ at the beginning of a path, as a shell would have it."""
    for path, _ in _path_settings(config):
        config = _changed(config, path.split("."), os.path.expanduser)
    for path in _MODELS:  # which are compared when a run goes on
        config = _changed(config, path.split("."), os.path.normpath)
    return config


def _path_settings(config: Config) -> Iterator[tuple[str, str]]:
    """The settings that are paths; for those that cannot be URLs, what to do instead."""
    yield "run.dir", _ON_A_DISK
    yield "data.cache_dir", _ON_A_DISK
    for path in _MODELS:
        yield path, "fetch a model of the hub first (hf download NAME --local-dir FOLDER)"
    yield "checkpoint.copy_to", ""
    yield "data.tokenizer.path", _NO_FILES
    yield "data.tokenizer.chat_template", "download the file"
    for index, source in enumerate(config.data.sources):
        yield f"data.sources.{index}.path", _MAPPED if source.type in PRETOKENIZED else ""
        yield f"data.sources.{index}.heldout_path", _MAPPED
        yield f"data.sources.{index}.dataset", ""


def _changed(value: Any, keys: list[str], change: Callable[[str], str]) -> Any:
    """A section in which the texts at the end of these keys are changed; others, and "", stay."""
    if not keys:
        if isinstance(value, list):
            return [change(text) for text in value]
        return change(value) if value else value
    if isinstance(value, list):
        number, inner = int(keys[0]), keys[1:]
        return [_changed(one, inner, change) if at == number else one for at, one in enumerate(value)]
    assert isinstance(value, Section)
    return value.model_copy(update={keys[0]: _changed(getattr(value, keys[0]), keys[1:], change)})
