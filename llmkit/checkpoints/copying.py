"""`llmkit checkpoint copy`: the newest checkpoint of a run, and its record, to a store."""

from __future__ import annotations

import secrets
import sys
from pathlib import Path

from llmkit.checkpoint.read import newest
from llmkit.checkpoints.found import find
from llmkit.command_line import print_json, to_stderr
from llmkit.config.memory import show_bytes
from llmkit.config.redaction import command_on_record
from llmkit.config.stored import read_stored
from llmkit.copies.listing import offer_of
from llmkit.copies.place import beneath, checked
from llmkit.copies.sender import Sender, known_of
from llmkit.copies.store import Store
from llmkit.data.sources.retries import RequestError
from llmkit.errors import RunFault, UserError
from llmkit.run_folder import borrowed


def copy_command(run: Path, to: str | None, *, as_json: bool = False) -> int:
    """Copies the newest good checkpoint of a run, the best one and the record; prints where the first lies.

    What is there already is not sent again. to: instead of the run's `checkpoint.copy_to`. as_json: an
    object tells it, and what was sent. Raises UserError
    where the run is under way, or names no store; RunFault where the store does not take it.
    """
    found = find(run)
    if found.run is None or found.single:
        raise UserError(f"copy: {run} is no run folder; name one")
    advice = ", and copies by itself where checkpoint.copy_to is set; wait for it, or stop it first"
    with borrowed(found.run, "checkpoint copy", advice=advice, note=to_stderr):
        checkpoint = newest(found.root, to_stderr)
        if checkpoint is None:
            raise RunFault(f"copy: no checkpoint in {found.root} is good")
        config = read_stored(checkpoint.config, checkpoint.origin, to_stderr)
        base = to or config.checkpoint.copy_to
        if base is None:
            raise UserError(f"copy: {run} has no checkpoint.copy_to; name a store by --to URL")
        offer, known = offer_of(checkpoint.path, config), known_of(found.run, secrets.token_hex(8))
        store = Store(beneath(checked(base, "--to"), config.run.name))
        to_stderr(f"copying {offer.name} to {store}")
        sender = Sender(store, found.run, known, " ".join(command_on_record(sys.argv)))
        try:
            sender.claim(to_stderr)
            size = sender.copy(offer.name, offer.files, offer.rule.kept)
            if (best := offer.best) is not None and not sender.has(best.name, best.files):
                size += sender.copy(best.name, best.files, offer.rule.kept, offer.step)
            sender.beat(0, ended=True)
        except RequestError as error:
            raise RunFault(
                f"copy: {offer.name} is not copied to {store} ({error}); the same command goes on from here"
            ) from error
    to_stderr(
        f"sent {show_bytes(size)}" + (f"; not deleted: {sender.not_deleted}" if sender.not_deleted else "")
    )
    url = f"{store}/checkpoints/{offer.name}"
    if as_json:
        print_json({"url": url, "sent_bytes": size, "not_deleted": sender.not_deleted or None})
    else:
        print(url)
    return 0
