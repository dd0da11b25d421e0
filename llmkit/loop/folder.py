"""Opening the run folder, and the proof that it is one and the same for all ranks."""

from __future__ import annotations

import contextlib
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path

from llmkit.config.load import Loaded
from llmkit.config.mistakes import COMMAND_LINE
from llmkit.end_file import forget_end
from llmkit.errors import UserError
from llmkit.parallel.agreement import fail_together, on_rank_zero
from llmkit.parallel.mesh import Mesh
from llmkit.run_folder import FollowedFolder, RunFolder, run_folder_of


def open_folder(loaded: Loaded, mesh: Mesh, environment: Mapping[str, str]) -> RunFolder:
    """The run folder, which rank 0 holds and the others follow.

    $STOP_FILE names a second file that asks for a stop, $SAVED_FILE one that says that it was heard, and
    $END_FILE one for the end of this start (`end_file.py`).
    Raises UserError where a rank has another folder under the same path, or cannot write where checkpoints
    go: no save could ever work; and where the settings are those of a run folder that lies elsewhere now.
    """
    path = Path(loaded.config.run.dir) / loaded.config.run.name
    stop, saved = (
        Path(environment[name]) if environment.get(name) else None for name in ("STOP_FILE", "SAVED_FILE")
    )
    folder: RunFolder | None = None
    with fail_together(mesh):
        if mesh.rank == 0:
            _check_not_moved(loaded, path)
            folder = RunFolder.open(path, " ".join(sys.argv), stop, saved)
            forget_end(environment)
    try:
        # A folder of the same name may be there without being shared: only rank 0's has this one in it.
        handshake = on_rank_zero(mesh, lambda: folder.begin_handshake() if folder else "")
        try:
            with fail_together(mesh):
                folder = folder or FollowedFolder.follow(path)
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
