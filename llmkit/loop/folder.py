"""Opening the run folder, and the proof that it is one and the same for all ranks."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

from llmkit.config.schema import Config
from llmkit.parallel.agreement import first_only, together
from llmkit.parallel.mesh import Mesh
from llmkit.run_folder import FollowedFolder, RunFolder


def open_folder(config: Config, mesh: Mesh, environment: Mapping[str, str]) -> RunFolder:
    """The run folder, which rank 0 holds and the others follow.

    $STOP_FILE names a second file that asks for a stop, $SAVED_FILE one that says that it was heard.
    Raises UserError where a rank has another folder under the same path, or cannot write where checkpoints
    go: no save could ever work.
    """
    path = Path(config.run.dir) / config.run.name
    stop, saved = (
        Path(environment[name]) if environment.get(name) else None for name in ("STOP_FILE", "SAVED_FILE")
    )
    folder: RunFolder | None = None
    with together(mesh):
        if mesh.rank == 0:
            folder = RunFolder.open(path, " ".join(sys.argv), stop, saved)
    try:
        # A folder of the same name may be there without being shared: only rank 0's has this one in it.
        handshake = first_only(mesh, lambda: folder.begin_handshake() if folder else "")
        try:
            with together(mesh):
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
