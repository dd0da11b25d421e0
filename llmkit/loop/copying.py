"""Copies of the checkpoints of a run, made beside training (`checkpoint.copy_to`)."""

from __future__ import annotations

import secrets
import shlex
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmkit.checkpoint.read import folders
from llmkit.config.mistakes import printable
from llmkit.config.redaction import command_on_record
from llmkit.copies.copier import Copier
from llmkit.copies.held import forget
from llmkit.copies.listing import offer_of
from llmkit.copies.offer import Listed
from llmkit.copies.place import url_of
from llmkit.copies.sender import known_of
from llmkit.data.sources.urls import redact_url
from llmkit.engine.base import StepResult
from llmkit.errors import RunFault, UserError
from llmkit.loop.hook import Hook
from llmkit.loop.launch import Launch
from llmkit.stopping import asked_to_stop

if TYPE_CHECKING:
    from llmkit.loop.trainer import Trainer


def open_copies(t: Trainer, launch: Launch, stack: ExitStack) -> Callable[[], None]:
    """Lets rank 0 copy each checkpoint, beginning with the newest one that is there.

    Returns what is to be called once the record of the run is complete; `stack` then waits for the last copy.
    One rank is enough: all ranks share the disk of the run folder, and it is the network that bounds a copy.
    """
    if t.mesh.rank > 0:
        return lambda: None
    forget(t.folder.checkpoints)
    url = url_of(launch.config)
    if url is None:
        return lambda: None
    command = " ".join(command_on_record(sys.argv))
    copier = Copier(t.folder.path, url, command, launch.environment)
    hook = CopyHook(t, url, copier)
    stack.callback(hook.finish)
    t.hooks.add(hook)
    hook.start()
    return copier.end


class CopyHook(Hook):
    """Has each checkpoint copied once it is saved, and puts on record what became of it."""

    def __init__(self, t: Trainer, url: str, copier: Copier) -> None:
        self._t, self._url, self._copier = t, redact_url(url), copier
        self._copied = set[str]()
        self._listed: dict[str, Listed] = {}
        """Of the checkpoint that was offered last, and of the best one: they are not read again."""
        self._has_failed = False

    def start(self) -> None:
        """Has the newest checkpoint copied, if that was not done."""
        known_of(self._t.folder.path, secrets.token_hex(8))
        found = folders(self._t.folder.checkpoints)
        self._offer(found[-1] if found else None)

    def after_save(self, t: Trainer, path: Path) -> None:
        """Has it copied."""
        self._offer(path)

    def after_step(self, t: Trainer, result: StepResult) -> None:
        """Takes what the process that copies has said."""
        for message in self._copier.messages():
            self._take(message)

    def finish(self) -> None:
        """Lets the process end in time; says what was not copied, and how that is done later."""
        t = self._t
        done = self._copier.finish(self._take, self._may_wait_on)
        offer = self._copier.offered
        if not done:
            what = (
                f"{offer.name} is not copied"
                if offer and offer.name not in self._copied
                else "the record is not copied"
            )
            run = shlex.quote(str(t.folder.path))
            t.console.note(
                f"{what} to {self._url}: nothing is lost here; to copy it: llmkit checkpoint copy {run} "
                f"(why: {t.folder.logs / 'copies.log'})",
                important=True,
            )

    def _may_wait_on(self) -> bool:
        """Whether the end of the run may take as long as bytes are sent: not where something waits for it."""
        t = self._t
        return t.state.finished() and t.config.train.max_minutes is None and not asked_to_stop()

    def _offer(self, path: Path | None) -> None:
        try:
            if path is None:
                self._copier.offer()
                return
            offer = offer_of(path, self._t.config, self._listed)
            self._listed = {each.name: each for each in (offer, offer.best) if each is not None}
            self._copier.offer(offer)
        except (RunFault, UserError) as error:
            name = "" if path is None else path.name
            self._take({"event": "copy_failed", "path": name, "reason": str(error)})

    def _take(self, message: dict[str, Any]) -> None:
        """Puts a message on record. Of failures in a row, the first one is shown."""
        event, name = message.get("event"), str(message.get("path", ""))
        step = int(name.removeprefix("step-")) if name.startswith("step-") else self._t.state.step
        if event == "copied":
            self._copied.add(name)
            seconds, size = message.get("seconds"), message.get("bytes")
            self._t.events.record("copied", step=step, path=name, to=self._url, bytes=size, seconds=seconds)
            if self._has_failed:
                self._t.console.note(f"{name} is copied to {self._url}")
            self._has_failed = False
        elif event == "recovered":
            if self._has_failed:
                self._t.console.note(f"{self._url} can be copied to again")
            self._has_failed = False
        elif event == "copy_failed":
            reason, final = printable(str(message.get("reason", "")), 300), bool(message.get("final"))
            self._t.events.record("copy_failed", step=step, path=name, to=self._url, reason=reason)
            if final or not self._has_failed:
                then = "nothing more is copied" if final else "it is tried again"
                self._t.console.note(
                    f"not copied to {self._url}, training goes on, and {then}: {reason}", important=True
                )
            self._has_failed = True
