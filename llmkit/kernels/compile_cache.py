"""The folder in which torch.compile keeps what it has compiled, for later starts and other ranks.

What lies in it is loaded and executed: it must be a folder to which nobody else can write, so never one in a
run folder, and never PyTorch's default, a name in /tmp that any user of the machine can take first.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import platform
import stat
import struct
import tempfile
from collections.abc import Callable, Iterator, MutableMapping
from pathlib import Path

import torch

from llmkit.cores import available_cores
from llmkit.errors import UserError
from llmkit.files import user_cache

VARIABLE = "TORCHINDUCTOR_CACHE_DIR"
MOST_THREADS = 32
"""Compilers that PyTorch runs at once, at most."""


def use_compile_cache(
    environment: MutableMapping[str, str], local_size: int, note: Callable[[str], None]
) -> Path:
    """Makes torch.compile keep its code in a private folder, free of files that a crash has truncated.

    environment: the process's. TORCHINDUCTOR_CACHE_DIR is honoured; else it is set to a folder of this user
    for this kind of machine and this version of PyTorch. local_size: processes on the host, which share the
    folder and the cores. note: is called with what was removed.
    Raises UserError where others can write to the folder that is asked for, or there is none to write to.
    """
    if asked := environment.get(VARIABLE):
        folder = Path(asked).absolute()
        if why := refusal(folder):
            raise UserError(
                f"{VARIABLE}={asked} cannot keep compiled code, which is executed: {why}; name a folder of "
                "your own, or leave the variable unset"
            )
    else:
        folder = _own_folder(environment)
        environment[VARIABLE] = str(folder)
    if removed := remove_truncated(folder):
        note(f"{removed} truncated files in the cache of compiled code are removed and made anew ({folder})")
    _set_up_inductor(environment, local_size)
    return folder


def _own_folder(environment: MutableMapping[str, str]) -> Path:
    """The first usable of a folder in the user's cache and one in the folder for temporary files."""
    tried = []
    for base in (user_cache(environment), _temporary()):
        folder = base / "compiled" / _kind_of_machine()
        if (why := refusal(folder)) is None:
            return folder
        tried.append(f"{base}: {why}")
    raise UserError(
        f"there is no folder for compiled code ({'; '.join(tried)}): set {VARIABLE} to a folder of your own, "
        "or kernels.compile=false"
    )


def _temporary() -> Path:
    """This user's own folder on the host, for what no other start needs."""
    return Path(tempfile.gettempdir()) / f"llmkit-{os.getuid()}"


def _kind_of_machine() -> str:
    """A digest of what compiled code depends on, of which not all is in the keys of PyTorch's cache.

    It compiles for the CPU at hand (-march=native), and home folders are shared by unlike hosts.
    """
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    cpu = {line for line in lines if line.startswith(("model name", "flags", "Features", "CPU part"))}
    known = [torch.__version__, platform.python_version(), platform.machine(), *sorted(cpu)]
    return hashlib.blake2b("\n".join(known).encode(), digest_size=8).hexdigest()


def refusal(folder: Path) -> str | None:
    """Why `folder` cannot keep code that will be executed; None if it can. Makes it, private, if absent.

    It and all folders above must belong to this user or the system, and no other user may write to them; but
    for folders as /tmp, in which nobody can rename what belongs to others.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        resolved = folder.resolve(strict=True)
        for path in (resolved, *resolved.parents):
            found = path.stat()
            if found.st_uid not in (os.getuid(), 0):
                return f"{path} belongs to another user"
            shared = stat.S_IWOTH | (stat.S_IWGRP if path == resolved else 0)
            if found.st_mode & shared and (path == resolved or not found.st_mode & stat.S_ISVTX):
                return f"other users can write to {path} (chmod go-w takes that away)"
        _try_lock(resolved / "llmkit.lock")
    except OSError as error:
        return str(error)
    return None


def _try_lock(path: Path) -> bool:
    """Whether nobody holds the lock of this file. Raises OSError where files cannot be locked."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)


def remove_truncated(folder: Path) -> int:
    """Removes files of a cache that are not whole, as after a crash or on a full disk; returns how many.

    PyTorch makes anew what is absent, but takes what is there: a truncated library ends the process by a
    signal when it is loaded. What another process is writing, under a lock, is left alone.
    """
    removed = 0
    for path in _truncated(folder):
        lock = folder / "locks" / f"{path.name.partition('.')[0]}.lock"
        if not lock.exists() or _try_lock(lock):
            path.unlink(missing_ok=True)
            removed += 1
    return removed


def _truncated(folder: Path) -> Iterator[Path]:
    for root, _, names in os.walk(folder):
        for name in names:
            path = Path(root) / name
            pickled = path.relative_to(folder).parts[0] in ("fxgraph", "aotautograd")
            try:
                if (
                    (name.endswith(".so") and not _is_whole_library(path))
                    or (name.endswith(".cpp") and not _is_whole_cpp(path.read_bytes()))
                    or (name.endswith(".py") and path.parent.parent == folder and not _is_whole_source(path))
                    or (pickled and path.read_bytes()[-1:] != b".")  # the opcode that ends every pickle
                ):
                    yield path
            except FileNotFoundError:  # another process was faster
                continue


def _is_whole_library(path: Path) -> bool:
    """Whether an ELF file has all of its sections; their table is what a linker writes last."""
    with path.open("rb") as file:
        head = file.read(64)
    if head[:4] != b"\x7fELF" or len(head) < 64:
        return False
    if head[4] != 2:  # not of 64 bits
        return True
    order = "<" if head[5] == 1 else ">"
    (table,) = struct.unpack_from(f"{order}Q", head, 0x28)
    size, count = struct.unpack_from(f"{order}HH", head, 0x3A)
    return path.stat().st_size >= table + size * count


def _is_whole_cpp(source: bytes) -> bool:
    """Whether C++ that was generated, or is ours, goes on to its last brace."""
    return source.rstrip().endswith(b"}") and source.count(b"{") == source.count(b"}")


def _is_whole_source(path: Path) -> bool:
    """Whether a generated module is what its name, a digest of its text, says."""
    from torch._inductor.codecache import code_hash

    return code_hash(path.read_text(errors="replace").strip()) == path.stem


def _set_up_inductor(environment: MutableMapping[str, str], local_size: int) -> None:
    """This process's share of the cores, no needless trials, and compiled headers in a private folder."""
    import torch._functorch.config
    from torch._inductor import codecache, config

    # The cache's key holds both graphs of an autograd.Function; else models with one are compiled anew.
    torch._functorch.config.autograd_cache_allow_custom_autograd_functions = True
    # So it does of what puts a kernel of attention first, whose arguments are constants in the graph.
    for name in ("_backend_from_string", "_sdpa_kernel"):
        config.unsafe_marked_cacheable_functions[f"torch.nn.attention.{name}"] = torch.__version__
    if "TORCHINDUCTOR_COMPILE_THREADS" not in environment:
        config.compile_threads = max(1, min(MOST_THREADS, available_cores() // local_size))
    if config.cpp.vec_isa_ok is None:
        # Else it compiles a file for each set of instructions that the CPU has, one after another: a quarter
        # of the compilers' time of a first step. Where one fails after all, the code runs uncompiled.
        config.cpp.vec_isa_ok = True
    headers = _temporary() / "headers"  # large, and needed on this host only
    if refusal(headers) is None:
        codecache._HEADER_DIR = str(headers)
        codecache._HEADER_LOCK_DIR = str(headers / "locks")
    else:
        config.cpp_cache_precompile_headers = False
