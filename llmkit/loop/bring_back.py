"""A start on an empty disk: the newest complete copy of the run becomes its checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from llmkit.checkpoint.read import folders
from llmkit.config.memory import show_bytes
from llmkit.copies import catalogue, fetch, owner
from llmkit.copies.catalogue import Catalogue, Copy
from llmkit.copies.owner import Known
from llmkit.copies.place import url_of
from llmkit.copies.store import NotAsSentError, Store, Traffic
from llmkit.data.sources.remote import FileStat
from llmkit.data.sources.retries import RequestError, RetryPolicy
from llmkit.errors import RunFault, UserError
from llmkit.loop.launch import Launch
from llmkit.parallel.agreement import fail_together, on_rank_zero
from llmkit.parallel.mesh import Mesh
from llmkit.run_folder import RunFolder

SHORT = RetryPolicy(retries=1, stall_seconds=10.0)
"""With a store that need not be asked, as the run folder has checkpoints."""


def bring_back(launch: Launch, folder: RunFolder, note: Callable[[str], None]) -> dict[str, Any] | None:
    """Fetches the newest complete copy that is as it was sent, where the run folder has no checkpoint.

    The record of the run comes with it. All ranks call it, and fetch a share of the files each.

    Returns what the event `fetched` says; None where nothing was fetched. Raises UserError on all ranks where
    the copies are of another run, or another run folder has the run now; RunFault where that cannot be seen,
    and the run would have to begin anew.
    """
    url, mesh = url_of(launch.config), launch.mesh
    if url is None:
        return None
    raw = on_rank_zero(mesh, lambda: _ask(url, launch, folder, note))
    if not raw:
        return None
    found, store = Catalogue.model_validate_json(raw), Store(url)
    for copy in reversed(found.complete):
        if problem := _fetch(store, copy, folder, mesh, note):
            note(f"the copy of {copy.name} at {store} is not usable: {problem}")
            continue
        on_rank_zero(mesh, partial(_finish, store, found, copy, folder))
        return {"step": copy.step, "path": copy.name, "source": str(store)}
    raise RunFault(
        f"none of the {len(found.complete)} copies at {store} is usable; bring a checkpoint into "
        f"{folder.checkpoints}, or choose another run.name to start anew"
    )


def _ask(url: str, launch: Launch, folder: RunFolder, note: Callable[[str], None]) -> str:
    """On rank 0: the catalogue to fetch from, as JSON; "" where nothing is to be fetched."""
    here, known = folders(folder.checkpoints), Known.read(folder.path)
    store = Store(url, Traffic(SHORT) if here else None)
    try:
        found, there = owner.read(store), catalogue.read(store)
        if found is None:
            if there is None:
                return ""
            run, start = there.run, 0
        else:
            run, start = found.run, found.start
        if known.run != run if known is not None else here:
            raise UserError(
                f"{store} holds the copies of another run{f', last of {found.owner}' if found else ''}: "
                "choose another checkpoint.copy_to or run.name"
            )
        complete = there.complete if there is not None else []
        is_new = known is None or (found is not None and not known.covers(found))
        is_copy = known is not None and known.is_copy
        if found is not None and (is_new or is_copy):
            owner.require_free(store, found, launch.environment, note)
            if is_new and here and complete and complete[-1].name > here[-1].name:
                raise UserError(
                    f"{store} has {complete[-1].name} of a later start of this run, and {folder.path} only "
                    f"{here[-1].name}: move that folder away to go on from the copy, or choose another "
                    "run.name or checkpoint.copy_to"
                )
    except RequestError as error:
        if here:
            note(f"{store} does not say which copies it has ({error}); going on from the run folder")
            return ""
        raise RunFault(
            f"{store} (checkpoint.copy_to) cannot be asked whether it has copies of this run ({error}): "
            "mend that, or set checkpoint.copy_to=null to begin anew without"
        ) from error
    if known is None or is_new or is_copy:
        Known(run, start, None if found is None else found.owner).write(folder.path)
    if here or there is None or not complete:
        return ""
    if launch.options.fresh:
        raise UserError(
            f"--fresh: {store} holds copies of this run up to {complete[-1].name}; choose another "
            "run.name or checkpoint.copy_to, or delete them yourself"
        )
    return there.model_dump_json()


def _fetch(store: Store, copy: Copy, folder: RunFolder, mesh: Mesh, note: Callable[[str], None]) -> str:
    """Fetches a copy beside the checkpoints; returns why it cannot be used, or "". Collective."""
    heads = dict[str, FileStat]()

    def begin() -> str:
        note(f"fetching {copy.name} from {store}, {show_bytes(copy.size)}")
        return str(fetch.begin(copy, folder.checkpoints))

    def fetch_share() -> None:
        aside = fetch.aside(copy, folder.checkpoints)
        fetch.fetch_share(store, copy, aside, heads=heads)

    rank, ranks = mesh.rank, mesh.world_size
    if problem := _of_all(mesh, store, copy, lambda: heads.update(fetch.look(store, copy, rank, ranks))):
        return problem
    on_rank_zero(mesh, begin)
    return _of_all(mesh, store, copy, fetch_share)


def _of_all(mesh: Mesh, store: Store, copy: Copy, work: Callable[[], None]) -> str:
    """Does the work of every rank on a copy; returns why that cannot be used, or "". Collective."""
    problem = ""
    with fail_together(mesh):
        try:
            work()
        except NotAsSentError as error:
            problem = str(error)
        except RequestError as error:
            raise RunFault(
                f"{copy.name} cannot be fetched from {store} ({error}); what is here of it stays: start again"
            ) from error
    return next(filter(None, mesh.all_gather_text(problem)), "")


def _finish(store: Store, found: Catalogue, copy: Copy, folder: RunFolder) -> str:
    """Fetches the record, then gives the checkpoint its name: a start that finds one fetches nothing more."""
    try:
        fetch.fetch_record(store, found, folder.path)
    except RequestError as error:
        raise RunFault(
            f"the record of the run cannot be fetched from {store} ({error}); start again"
        ) from error
    path = fetch.finish(copy, fetch.aside(copy, folder.checkpoints))
    fetch.forget(folder.checkpoints)
    return str(path)
