"""Opening the run folder, and the proof that it is one and the same for all ranks."""

from __future__ import annotations

import contextlib
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

from llmkit.config.load import Loaded
from llmkit.config.mistakes import COMMAND_LINE
from llmkit.config.redaction import command_on_record
from llmkit.end_file import forget_end
from llmkit.errors import UserError
from llmkit.loop.launch import Launch
from llmkit.parallel.agreement import fail_together, on_rank_zero
from llmkit.run_folder import FollowedFolder, RunFolder, run_folder_of


def open_folder(launch: Launch, note: Callable[[str], None]) -> RunFolder:
    """The run folder, which rank 0 holds and the others follow.

    note: is called with what this start waits for.
    $STOP_FILE names a second file that asks for a stop, $SAVED_FILE one that says that it was heard, and
    $END_FILE one for the end of this start (`end_file.py`).
    Raises UserError where a rank has another folder under the same path, or cannot write where checkpoints
    go: no save could ever work; and where the settings are those of a run folder that lies elsewhere now.
    """
    loaded, mesh, environment = launch.loaded, launch.mesh, launch.environment
    path = Path(loaded.config.run.dir) / loaded.config.run.name
    stop, saved = (
        Path(environment[name]) if environment.get(name) else None for name in ("STOP_FILE", "SAVED_FILE")
    )
    folder: RunFolder | None = None
    with fail_together(mesh):
        if mesh.rank == 0:
            _check_not_moved(loaded, path)
            folder = RunFolder.open(
                path, " ".join(command_on_record(sys.argv)), stop, saved,
                environment=environment, take_over=launch.options.take_over, note=note,
            )  # fmt: skip
            forget_end(environment)
    try:
        # A folder of the same name may be there without being shared: only rank 0's has this one in it.
        begun = on_rank_zero(
            mesh, lambda: f"{folder.generation} {folder.begin_handshake()}" if folder else ""
        )
        generation, _, handshake = begun.partition(" ")
        try:
            with fail_together(mesh):
                folder = folder or FollowedFolder.follow(path, int(generation))
                folder.answer_handshake(handshake, mesh.rank)
        finally:
            if mesh.rank == 0 and folder is not None:
                folder.end_handshake(handshake)
    except BaseException:
        if folder is not None:
            folder.close()
        raise
    return folder


def _check_not_moved(loaded: Loaded, path: Path) -> None:
    """Raises UserError where the settings were read from a run folder that is not the one they name.

    A run folder holds its own settings. Where it was moved or copied, they name the folder from before: the
    run would begin anew there, or the wrong one would go on.
    """
    origins = loaded.origins
    file = Path(origins["run.name"].rpartition(":")[0])  # of "FILE:LINE"
    own = run_folder_of(file)
    if own is None or origins["run.dir"] == COMMAND_LINE:
        return
    with contextlib.suppress(OSError):
        if path.samefile(own):
            return
    raise UserError(
        f"{file} is from the run folder {own}, but names {path} as its run folder: it was moved or copied. "
        f"To go on with the run in {own}, add run.dir={shlex.quote(str(own.absolute().parent))} "
        f"run.name={own.absolute().name}; for a new run with its settings, add run.name=ANOTHER"
    )
