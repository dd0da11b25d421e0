"""The settings of a checkpoint, which another version may have written, as this version understands them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

from pydantic import ValidationError

from llmkit import __version__
from llmkit.config.mistakes import display
from llmkit.config.schema import Config
from llmkit.errors import UserError


def read_stored(content: Mapping[str, Any], origin: str, note: Callable[[str], None]) -> Config:
    """The settings that `Config.model_dump(mode="json")` gave to a checkpoint.

    A setting that did not exist then has its default, which is what held before it existed. One that this
    version does not know is left out and told to `note`. origin: names the checkpoint and its version.
    Raises UserError for a value that this version cannot use.
    """
    known = copy.deepcopy(dict(content))
    try:
        return Config.model_validate(known)
    except ValidationError as fault:
        errors = fault.errors(include_url=False)
    for error in errors:
        path = ".".join(str(part) for part in error["loc"])
        if error["type"] != "extra_forbidden":
            raise UserError(
                f"{origin}: its setting {path} is {display(error['input'])}, which llmkit {__version__} "
                f"cannot use ({error['msg']}); use the version that wrote it"
            )
        _remove(known, error["loc"])
        value = display(error["input"])
        note(f"{origin}: left out {path} = {value}, which llmkit {__version__} does not know")
    return Config.model_validate(known)


def _remove(content: Any, path: tuple[int | str, ...]) -> None:
    for part in path[:-1]:
        content = content[part]
    del content[path[-1]]
