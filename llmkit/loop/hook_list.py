"""The hooks of a run: called in order, and left out once they have failed."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from llmkit.errors import RunFault, UserError
from llmkit.loop.hook import Hook, Request

if TYPE_CHECKING:
    from llmkit.loop.trainer import Trainer

T = TypeVar("T")


class HookError(Exception):
    """A hook has raised something that is no message for users: its traceback is that of the cause."""


class HookList:
    """Calls hooks; the first error of one is kept in `failure`, and that hook is called no more.

    own: llmkit's own hooks, which come first and keep no state. Raises UserError where two of the others have
    one name.
    """

    def __init__(self, own: Sequence[Hook], others: Sequence[Hook]) -> None:
        self._others = list(others)
        self._active = [*own, *others]
        self.failure: Exception | None = None
        twice = [name for name, count in Counter(map(name_of, others)).items() if count > 1]
        if twice:
            raise UserError(f"two hooks are named {twice[0]!r}; give each its own `name`")

    @property
    def has_others(self) -> bool:
        """Whether hooks beside llmkit's own are there."""
        return bool(self._others)

    def add(self, hook: Hook) -> None:
        """Calls one more of llmkit's own hooks from now on."""
        self._active.append(hook)

    def call(self, method: str, t: Trainer, *arguments: Any) -> None:
        """Calls a method of each hook."""
        for hook in list(self._active):
            try:
                getattr(hook, method)(t, *arguments)
            except Exception as error:
                self._failed(hook, method, error)

    def requests(self, t: Trainer) -> Iterator[tuple[Hook, Request]]:
        """What the hooks of this rank ask for after a step."""
        for hook in list(self._active):
            try:
                request = hook.request(t)
                if request is not None:
                    _check(request)
                    yield hook, request
            except Exception as error:
                self._failed(hook, "request", error)

    def states(self) -> dict[str, Any]:
        """What a checkpoint keeps of each hook that has a state."""
        found = {}
        for hook in self._others:
            try:
                if state := hook.state():
                    found[name_of(hook)] = json.loads(json.dumps(state, allow_nan=False))
            except Exception as error:
                self._failed(hook, "state", error)
        return found

    def load_states(self, states: Mapping[str, Any]) -> None:
        """Gives each hook what a checkpoint has of it."""
        for hook in self._others:
            if name_of(hook) in states:
                try:
                    hook.load_state(states[name_of(hook)])
                except Exception as error:
                    self._failed(hook, "load_state", error)

    def _failed(self, hook: Hook, method: str, error: Exception) -> None:
        if hook in self._active:
            self._active.remove(hook)
        if self.failure is not None:
            return
        if hook not in self._others:
            self.failure = error
        elif isinstance(error, UserError | RunFault):
            self.failure = type(error)(f"the hook {name_of(hook)}: {error}")
        else:
            what = f"{type(error).__name__}: {error}"
            self.failure = HookError(f"the hook {name_of(hook)} failed in {method}: {what}")
        self.failure.__cause__ = error if self.failure is not error else None


def instances(given: Sequence[Any], kind: type[T]) -> list[T]:
    """The hooks or sinks that a caller gives. Raises UserError where one is something else."""
    for each in given:
        if not isinstance(each, kind):
            hint = f"; give an instance of it: {each.__qualname__}(...)" if isinstance(each, type) else ""
            raise UserError(f"{each!r} is no instance of llmkit.{kind.__name__}{hint}")
    return list(given)


def name_of(hook: Hook) -> str:
    """Its name, or that of its class."""
    return hook.name or type(hook).__qualname__


def _check(request: object) -> None:
    if not isinstance(request, Request):
        raise TypeError(f"request() returned {request!r}, neither a Request nor None")
