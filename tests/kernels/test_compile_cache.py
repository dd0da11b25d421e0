"""Compiled code is kept where nobody else can write, and serves later starts; damage costs a compilation."""

from __future__ import annotations

import fcntl
import operator
import os
import stat
import sys
from pathlib import Path

import pytest
import torch
import torch._dynamo
import torch._inductor.config as inductor
from torch._inductor import codecache

from llmkit.errors import UserError
from llmkit.kernels.compile_cache import VARIABLE, refusal, remove_truncated, use_compile_cache
from llmkit.kernels.compiler import compiler_missing
from llmkit.model.activation_checkpointing import recomputed

NO_COMPILER = compiler_missing(torch.device("cpu"))


@pytest.fixture(autouse=True)
def _settings_as_before(monkeypatch, tmp_path):
    """What is set of torch's modules is set back, and nothing is kept in the user's home folder."""
    for name in ("_HEADER_DIR", "_HEADER_LOCK_DIR"):
        monkeypatch.setattr(codecache, name, getattr(codecache, name))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    names = ("compile_threads", "cpp.vec_isa_ok", "cpp_cache_precompile_headers")
    with inductor.patch({name: operator.attrgetter(name)(inductor) for name in names}):
        yield


@pytest.fixture
def asked(tmp_path, monkeypatch):
    """A folder of compiled code that the environment names."""
    monkeypatch.setenv(VARIABLE, str(tmp_path / "asked"))
    return tmp_path / "asked"


def test_the_default_is_a_private_folder_in_the_users_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    environment = {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    folder = use_compile_cache(environment, 1, pytest.fail)
    assert folder.parent == tmp_path / "cache/llmkit/compiled"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert environment[VARIABLE] == str(folder)
    for home in ("", "here"):
        assert use_compile_cache({"XDG_CACHE_HOME": home}, 1, pytest.fail).is_relative_to(tmp_path / "home")
    assert Path(codecache._HEADER_DIR).is_relative_to(tmp_path), "not a name in /tmp that others may take"


def test_without_a_usable_home_it_is_a_private_folder_for_temporary_files(tmp_path):
    (tmp_path / "file").write_text("")
    folder = use_compile_cache({"XDG_CACHE_HOME": str(tmp_path / "file")}, 1, pytest.fail)
    assert folder.is_relative_to(tmp_path / "tmp" / f"llmkit-{os.getuid()}")


@pytest.mark.parametrize("mode", [0o777, 0o1777, 0o770])
def test_a_folder_that_others_can_write_to_is_refused(asked, mode):
    asked.mkdir()
    asked.chmod(mode)
    with pytest.raises(UserError, match=rf"{VARIABLE}=.*other users can write to {asked}"):
        use_compile_cache(os.environ, 1, pytest.fail)


def test_a_folder_below_one_that_others_can_write_to_is_refused(tmp_path):
    open_to_all = tmp_path / "open"
    open_to_all.mkdir()
    open_to_all.chmod(0o777)
    assert str(refusal(open_to_all / "mine")).startswith(f"other users can write to {open_to_all} ")
    open_to_all.chmod(0o1777)  # as /tmp: nobody can rename what belongs to others
    assert refusal(open_to_all / "mine") is None


def test_a_folder_of_another_user_is_refused(tmp_path, monkeypatch):
    folder = tmp_path / "theirs"
    folder.mkdir()
    if os.getuid() == 0:  # what belongs to the system is trusted
        os.chown(folder, 54321, -1)
    else:
        monkeypatch.setattr(os, "getuid", lambda: 54321)
    assert str(refusal(folder)).endswith("belongs to another user")


def test_ranks_share_the_cores_unless_a_number_is_set(asked, monkeypatch):
    monkeypatch.setattr("llmkit.kernels.compile_cache.available_cores", lambda: 64)
    for local_size, threads in ((1, 32), (8, 8), (128, 1)):
        use_compile_cache(os.environ, local_size, pytest.fail)
        assert inductor.compile_threads == threads
    inductor.compile_threads = 5
    use_compile_cache({**os.environ, "TORCHINDUCTOR_COMPILE_THREADS": "5"}, 8, pytest.fail)
    assert inductor.compile_threads == 5


def test_sources_that_end_in_the_midst_are_removed(tmp_path):
    (tmp_path / "ab").mkdir()
    for name, text in (("whole", "void f() {\n}\n"), ("part", "void f() {\n  { g(); }"), ("empty", "")):
        (tmp_path / "ab" / f"{name}.cpp").write_text(text)
    assert remove_truncated(tmp_path) == 2
    assert [path.name for path in (tmp_path / "ab").iterdir()] == ["whole.cpp"]


def test_what_is_being_written_is_left_alone(tmp_path):
    (tmp_path / "locks").mkdir()
    (tmp_path / "ab").mkdir()
    library = tmp_path / "ab" / "cabc.main.so"
    library.write_bytes(b"\x7fELF")
    with (tmp_path / "locks" / "cabc.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert remove_truncated(tmp_path) == 0
    assert remove_truncated(tmp_path) == 1
    assert not library.exists()


NEGATIVE = False


class Scaled(torch.autograd.Function):
    """Its backward pass is no consequence of its forward pass."""

    @staticmethod
    def forward(ctx, x):
        return x.sin()

    @staticmethod
    def backward(ctx, dy):
        return dy.neg() if NEGATIVE else dy * 2.0


def compute(x: torch.Tensor) -> torch.Tensor:
    return recomputed("selective", lambda y: Scaled.apply(y) + 1.0, x, random=False).sum()


def start() -> tuple[float, dict[str, int]]:
    """A process's first use of compiled code: the gradient's sum, and whether the cache knew the graph."""
    torch._dynamo.reset()
    torch._inductor.utils.clear_caches()
    counters = torch._dynamo.utils.counters
    counters.clear()
    x = torch.linspace(0.0, 1.0, 40, requires_grad=True)
    torch.compile(compute, dynamic=False)(x).backward()
    assert not counters["graph_break"]
    return float(x.grad.sum()), {
        name: counters["aot_autograd"][f"autograd_cache_{name}"] for name in ("hit", "miss", "bypass")
    }


HIT = {"hit": 1, "miss": 0, "bypass": 0}
MISS = {"hit": 0, "miss": 1, "bypass": 0}


@pytest.mark.skipif(NO_COMPILER is not None, reason=str(NO_COMPILER))
def test_a_second_start_compiles_nothing_and_damaged_files_are_made_anew(asked, monkeypatch):
    told: list[str] = []
    use_compile_cache(os.environ, 1, told.append)
    inductor.cpp_cache_precompile_headers = False  # they pay for many files only
    assert start() == (80.0, MISS)
    use_compile_cache(os.environ, 1, told.append)
    assert told == [], "nothing of a sound cache is taken for damaged"
    assert start() == (80.0, HIT)
    monkeypatch.setattr(sys.modules[__name__], "NEGATIVE", True)
    assert start() == (-40.0, MISS), "another backward pass is another graph"
    for path in [each for each in asked.rglob("*") if each.is_file() and each.suffix in (".so", ".py", "")]:
        os.truncate(path, path.stat().st_size // 2)
    use_compile_cache(os.environ, 1, told.append)
    (line,) = told
    assert "truncated files in the cache of compiled code are removed and made anew" in line
    assert start() == (-40.0, MISS)
