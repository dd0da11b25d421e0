"""Components that other people's code brings in, by kind and name, and the modules that bring them."""

from __future__ import annotations

import hashlib
import importlib
import inspect
import os
import sys
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

from llmkit.errors import UserError

Kind = Literal["model", "optimizer", "schedule", "source", "sink", "hook", "operator"]
BUILT_IN: dict[str, tuple[str, ...]] = {
    "model": ("gpt",),
    "optimizer": ("adamw", "muon"),
    "schedule": ("cosine", "linear", "constant", "wsd"),
    "source": ("stdlib", "text", "jsonl", "parquet", "arrow", "hub", "shards", "megatron"),
    "operator": (
        "auto", "torch", "triton", "avx512", "fp8", "int8", "nf4", "sdpa", "cudnn", "flash", "flash3",
        "flash4", "efficient", "varlen", "blocks", "matmul", "full", "chunked",
    ),
}  # fmt: skip
"""Names that llmkit's own components have; of operators those of forms."""

C = TypeVar("C", bound=Callable[..., Any])


@dataclass(frozen=True)
class Component:
    """A registered class or function.

    make: the class or function itself. settings: its class of settings (`Config` on it), or None.
    """

    kind: Kind
    name: str
    make: Callable[..., Any]
    settings: type | None

    @property
    def origin(self) -> str:
        """Where it is defined, as in "my_package.models.MyModel"."""
        return f"{self.make.__module__}.{self.make.__qualname__}"


_components: dict[tuple[str, str], Component] = {}


def register(kind: Kind, name: str) -> Callable[[C], C]:
    """Makes a class or function available to configurations under `name`; used as a decorator.

    Its settings are the class `Config` on it (a `llmkit.Section`), if it has one. Defining the same class
    again, as a notebook does, replaces it. Raises UserError for an unknown kind and for a name that is taken.
    """
    if kind not in get_args(Kind):
        raise UserError(f"register: there is no kind {kind!r}; the kinds are {', '.join(get_args(Kind))}")
    if not name or not name.replace("-", "").replace("_", "").replace(".", "").isalnum():
        raise UserError(f"register: the name {name!r} of a {kind} may have letters, digits and -_. only")

    def add(make: C) -> C:
        """Registers `make` and returns it, as a decorator does."""
        new = Component(kind, name, make, getattr(make, "Config", None))
        before = _components.get((kind, name))
        if name in BUILT_IN.get(kind, ()):
            raise UserError(f"{new.origin}: the {kind} {name!r} is llmkit's own; choose another name")
        if before is not None and before.origin != new.origin:
            raise UserError(
                f"the {kind} {name!r} is registered twice, by {before.origin} and by {new.origin}; rename one"
            )
        _components[kind, name] = new
        return make

    return add


def find(kind: Kind, name: object) -> Component | None:
    """The registered component, or None; llmkit's own are not among them."""
    return _components.get((kind, name)) if isinstance(name, str) else None


def names(kind: Kind) -> tuple[str, ...]:
    """All names of a kind, llmkit's own first."""
    return (*BUILT_IN.get(kind, ()), *sorted(name for k, name in _components if k == kind))


def import_plugin(name: str) -> None:
    """Imports a module that registers components; the working directory is searched too.

    Raises UserError that says what failed, and where in the plugin.
    """
    if (here := os.getcwd()) not in sys.path:
        sys.path.append(here)
    try:
        importlib.import_module(name)
    except UserError as error:
        raise UserError(f"the plugin {name}: {error}") from None
    except ModuleNotFoundError as error:
        if error.name is not None and f"{name}.".startswith(f"{error.name}."):
            raise UserError(
                f"the plugin {name} cannot be imported: there is no module {error.name}, neither installed "
                f"nor below {here}"
            ) from None
        raise _failed(name, error) from error
    except Exception as error:
        raise _failed(name, error) from error


def _failed(name: str, error: Exception) -> UserError:
    last = traceback.extract_tb(error.__traceback__)[-1]
    where = f"{last.filename}:{last.lineno}"
    if isinstance(error, SyntaxError) and error.filename:
        where = f"{error.filename}:{error.lineno}"
    return UserError(f"the plugin {name} cannot be imported: {type(error).__name__}: {error} ({where})")


def source_hashes(plugins: Iterable[str], used: Iterable[Component] = ()) -> dict[str, str]:
    """SHA-256 of the source file of each plugin and of each component that is in use; "" where it has none.

    Ranks compare them: another version of the code on one node would train another model.
    """
    files = {f"plugin {name}": getattr(sys.modules.get(name), "__file__", None) for name in plugins}
    for each in used:
        try:
            files[f"{each.kind} {each.name}"] = inspect.getsourcefile(inspect.unwrap(each.make))
        except TypeError:
            files[f"{each.kind} {each.name}"] = None
    return {name: _digest(file) for name, file in files.items()}


def _digest(file: str | None) -> str:
    if file is None or not os.path.isfile(file):
        return ""
    return hashlib.sha256(Path(file).read_bytes()).hexdigest()
