from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from llmkit.checkpoint.format import Manifest, decode_content
from llmkit.checkpoint.keeping import Best, write_best
from llmkit.checkpoint.read import load
from llmkit.checkpoints.fetching import at_hand
from llmkit.cli import main
from llmkit.errors import UserError
from tests.checkpoints.test_copying import copied, fetched


@pytest.fixture
def url(project: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The copies of a run."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(project / "cache"))
    assert copied("runs/tiny", "--to", f"file://{project}/store") == 0
    return f"file://{project}/store/tiny"


def test_what_is_not_there_is_said(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    for name, says in (
        (f"{url}/none", "holds no complete copy of a run; name the URL with the name of the run"),
        (f"{url}@3", "holds no complete copy of a run of step 3, but of 8"),
        (f"{url}@best", "@best: no checkpoint of the run is marked as the best; name a step instead"),
        ("store/tiny", "URL store/tiny: must be a URL"),
    ):
        assert fetched(name, "x") == 2
        assert says in capsys.readouterr().err
    assert not Path("x").exists()


def test_damaged_copies_are_not_taken(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    (path,) = Path("store/tiny/checkpoints/step-00000008").glob("pieces-*")
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert fetched(url, "x") == 1
    assert "no copy at" in capsys.readouterr().err
    path.write_bytes(whole)
    assert fetched(url, "x") == 0  # goes on with what is there
    assert list(load(Path("x/checkpoints/step-00000008")).problems()) == []


def test_a_url_names_a_model(url: str, project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Fetched once, into the user's cache, and verified when it is read, as any other."""
    asked = ["--prompt", "the", "--max-new-tokens", "5", "--temperature", "0"]
    assert main(["generate", "runs/tiny", *asked]) == 0
    straight = capsys.readouterr().out
    for again in (False, True):
        assert main(["generate", url, *asked]) == 0
        output = capsys.readouterr()
        assert output.out == straight and ("fetching step-00000008" in output.err) is not again
    assert main(["evaluate", f"{url}@step-8"]) == 0
    assert "fetching" not in capsys.readouterr().err
    assert len(list((project / "cache/llmkit/copies").iterdir())) == 1


def test_another_checkpoint_of_the_step_is_fetched_anew(
    url: str, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What the cache has of a run that has gone back and made the step again is not that any more."""
    environment = {"XDG_CACHE_HOME": str(project / "cache")}
    folder = Path(at_hand(url, environment))
    path = Path("runs/tiny/checkpoints/step-00000008/manifest.json")
    content = decode_content(path.read_bytes())
    content["state"]["made"] = "again"
    manifest = Manifest.model_validate(content)
    path.write_bytes(manifest.encode())
    assert copied("runs/tiny", "--to", f"file://{project}/store") == 0
    capsys.readouterr()
    assert at_hand(url, environment) == str(folder) and load(folder).state["made"] == "again"
    assert "fetching step-00000008" in capsys.readouterr().err
    (pieces,) = folder.glob("pieces-*")
    pieces.write_bytes(pieces.read_bytes()[:-1])  # and so is one that is not whole any more
    assert at_hand(url, environment) == str(folder) and list(load(folder).problems()) == []
    assert [each.name for each in folder.parent.iterdir() if each.is_dir()] == [folder.name]


def test_the_best_one_is_that_of_the_record(
    url: str, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for step, says in ((7, "holds no complete copy of a run of step 7, but of 8"), (8, "")):
        write_best(Path("runs/tiny/checkpoints"), Best(step, 1.5))
        assert copied("runs/tiny", "--to", f"file://{project}/store") == 0
        capsys.readouterr()
        assert fetched(f"{url}@best", "best") == (2 if says else 0)
        assert says in capsys.readouterr().err
    assert load(Path("best/checkpoints/step-00000008")).step == 8


def test_processes_of_one_command_fetch_once(
    url: str, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As the ranks of `torchrun llmkit evaluate URL`: the others wait, and find it."""
    environment, both = {"XDG_CACHE_HOME": str(project / "ranks")}, threading.Barrier(2)

    def rank(number: int) -> str:
        both.wait()
        return at_hand(url, environment)

    with ThreadPoolExecutor(2) as ranks:
        first, second = ranks.map(rank, range(2))
    assert first == second and list(load(Path(first)).problems()) == []
    assert capsys.readouterr().err.count("fetching step-00000008") == 1
    (root,) = (project / "ranks/llmkit/copies").iterdir()
    assert sorted(path.name for path in root.iterdir()) == [".lock", "step-00000008"]


def test_a_cache_that_cannot_be_written_is_named(url: str, project: Path) -> None:
    (project / "file").touch()
    with pytest.raises(UserError, match=r"cannot be written .*XDG_CACHE_HOME"):
        at_hand(url, {"XDG_CACHE_HOME": str(project / "file")})
