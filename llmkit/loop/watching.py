"""The watchdog of a rank in the loop: started with the run folder, notified of steps, read at each row."""

from __future__ import annotations

import json
import os
import secrets
import socket
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmkit.end_file import END_FILE, own_host
from llmkit.loop.hook import Hook
from llmkit.loop.launch import Launch
from llmkit.loop.phases import NAMES
from llmkit.parallel.mesh import Mesh
from llmkit.parallel.network import address_of_gloo
from llmkit.parallel.roll_call import Explanation
from llmkit.run_folder import RunFolder
from llmkit.watchdog.limits import Limits
from llmkit.watchdog.lines import Message
from llmkit.watchdog.watch import Hub, Watch, Watched

if TYPE_CHECKING:
    from llmkit.engine.base import StepResult
    from llmkit.loop.trainer import Trainer

KEY = "watchdog"
"""Of the store: where the watching processes meet."""


def open_watch(launch: Launch, folder: RunFolder, note: Callable[[str], None], stack: ExitStack) -> Watch:
    """The watchdog of this rank, which the phases of `launch` notify; closed by `stack`. All ranks call it.

    Where there can be none, as on what is not Linux, the run goes on without, and note says so.
    """
    config, mesh = launch.config, launch.mesh
    limits = Limits(
        config.faults.max_step_seconds, config.data.stall_seconds, foreign=bool(launch.hooks)
    )  # fmt: skip
    watch = Watch(NAMES, limits)
    end_file = launch.environment.get(END_FILE)
    if not config.faults.watchdog:
        return watch
    watched = Watched(
        folder.path, mesh.rank, mesh.world_size, folder.generation,
        ends=launch.own_process or mesh.world_size > 1, report_steps=config.monitor.log_every,
        end_file=end_file and os.path.abspath(end_file),
    )  # fmt: skip
    alone = launch.local_size == mesh.world_size
    try:
        watch.start(watched, meet(mesh, own_host(launch.environment), one_host=alone))
    except OSError as error:
        note(f"nothing watches over this process, so that it would not be noticed if it hangs: {error}")
        return watch
    stack.callback(watch.close)
    launch.phases.beat = watch.beat
    if mesh.roll_call is not None:
        mesh.roll_call.witness = lambda: explanation(watch)
    return watch


def explanation(watch: Watch) -> Explanation | None:
    """What the watchdog knows of ranks that have gone."""
    verdict = watch.look_for_verdict()
    return None if verdict is None else Explanation(verdict.ranks, verdict.text, watch.hosts)


def meet(mesh: Mesh, host: str, *, one_host: bool) -> Hub | None:
    """Where the watching processes of all ranks meet, which rank 0 tells the others; None for one rank alone.

    host: the name of this one. one_host: whether all ranks are on it. Raises OSError on all ranks where
    rank 0 finds no place.
    """
    if mesh.world_size == 1:
        return None
    assert mesh.store is not None
    if mesh.rank > 0:
        place = json.loads(mesh.store.get(KEY))
        if "error" in place:
            raise OSError(place["error"])
        return Hub(**place)
    try:
        address = "127.0.0.1" if one_host else address_of_gloo()
        family = socket.getaddrinfo(address, 0, type=socket.SOCK_STREAM)[0][0]
        server = socket.create_server((address, 0), family=family, backlog=mesh.world_size)
    except OSError as error:
        mesh.store.set(KEY, json.dumps({"error": f"rank 0 cannot listen: {error}"}))
        raise
    hub = Hub(address, server.getsockname()[1], secrets.token_hex(16), host, server)
    mesh.store.set(KEY, json.dumps({**hub._replace(server=None)._asdict()}))
    return hub


class WatchHook(Hook):
    """Tells the watchdog of each step, and puts on record what it has to say."""

    def __init__(self, watch: Watch) -> None:
        self._watch, self._before = watch, 0.0

    def on_start(self, t: Trainer) -> None:
        """Counts from here."""
        self._before = _training(t)
        self._watch.saved(t.saved_step, t.first_step)

    def after_save(self, t: Trainer, path: Path) -> None:
        """What is lost by a fault counts from here."""
        self._watch.saved(t.saved_step)

    def after_step(self, t: Trainer, result: StepResult) -> None:
        """A step is over, and lasted since the one before."""
        now = _training(t)
        self._watch.step_done(t.state.step, now - self._before, *t.log.own_seconds)
        self._before = now
        if t.state.step % t.config.monitor.log_every == 0:
            for message in self._watch.news():
                take(t, message)


def _training(t: Trainer) -> float:
    """Seconds of all steps until now, with their data and what followed them."""
    seconds = t.phases.seconds
    return seconds["data"] + seconds["step"] + seconds["other"]


def take(t: Trainer, message: Message) -> None:
    """Puts a message of the watching process on record, and shows it."""
    if message["kind"] == "unwatched":
        t.console.note(f"rank {t.mesh.rank} is not watched any more: {message['reason']}")
    elif message["kind"] == "straggler":
        fields: dict[str, Any] = {name: message[name] for name in ("rank", "host", "seconds", "median")}
        t.record_event("straggler", step=t.state.step, **fields)
        t.console.note(
            f"rank {fields['rank']} ({fields['host']}) is a straggler, for which all wait: of its own a "
            f"step takes it {fields['seconds']:.3g} s, and the others {fields['median']:.3g} s",
            important=True,
        )
