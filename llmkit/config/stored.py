"""Reads the settings in a checkpoint that another version may have written."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from pydantic import ValidationError

from llmkit import __version__
from llmkit.config.mistakes import display
from llmkit.config.paths import with_home
from llmkit.config.registered import CHOICES, config_class
from llmkit.config.renamed import with_new_names
from llmkit.config.resume import rule_of
from llmkit.config.schema import Config
from llmkit.errors import UserError
from llmkit.registry import import_plugin


def read_stored(content: Mapping[str, Any], origin: str, note: Callable[[str], None]) -> Config:
    """The settings that `Config.model_dump(mode="json")` gave to a checkpoint.

    A setting that did not exist then has its default, which is what held before it existed; one of another
    name today is read under the new name. One that this version does not know, or of which it does not know
    the value, is left out, and `note` is called with a message. origin: names the checkpoint and its version.
    Raises UserError where such a value decides what the model is or reads.
    """
    known = with_new_names(content)
    require_plugins(known, origin)
    schema = config_class(known)
    try:
        return with_home(schema.model_validate(known))
    except ValidationError as fault:
        errors = fault.errors(include_url=False)
    wrong = {_there(known, error["loc"]): error for error in errors}
    for path, error in wrong.items():
        name = ".".join(map(str, path))
        what = f"{name} = {display(error['input'])}"
        rule = rule_of(name, schema)
        if error["type"] != "extra_forbidden" and (rule is None or rule.kind in ("fixed", "data")):
            raise UserError(
                f"{origin}: its setting {what} is none that llmkit {__version__} knows ({error['msg']}); "
                + _remedy(name)
            )
        _remove(known, path)
        note(f"{origin}: left out {what}, which llmkit {__version__} does not know")
    return with_home(schema.model_validate(known))


def _remedy(name: str) -> str:
    registered = name in (f"{choice.section}.{choice.key}" for choice in CHOICES)
    return (
        "import the module that registers it, or " if registered else ""
    ) + "use the version that wrote it"


def require_plugins(content: Mapping[str, Any], origin: str) -> None:
    """Imports the modules that a stored configuration names.

    Raises UserError, which names the checkpoint, where one cannot be imported.
    """
    for name in content.get("plugins", ()):
        try:
            import_plugin(name)
        except UserError as error:
            raise UserError(f"{origin}: {error}") from error


def _there(content: Any, location: tuple[int | str, ...]) -> tuple[int | str, ...]:
    """Cuts an error's location to the setting: behind it pydantic names the types that it has tried."""
    path: tuple[int | str, ...] = ()
    for part in location:
        sections = isinstance(content, list) and all(isinstance(item, dict) for item in content)
        if not sections and not isinstance(content, dict):
            break
        try:
            content = content[part]
        except (KeyError, IndexError, TypeError):
            break
        path = (*path, part)
    return path or location


def _remove(content: Any, path: tuple[int | str, ...]) -> None:
    for part in path[:-1]:
        content = content[part]
    del content[path[-1]]
