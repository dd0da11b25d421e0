from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llmkit.config import schema
from llmkit.data.building import corpus
from llmkit.data.building import prepare as build
from llmkit.data.building.prepare import prepare
from llmkit.data.prepared import Prepared
from llmkit.data.sources.documents import split_heldout
from llmkit.errors import RunFault, UserError

SCRIPT = """
import sys
from llmkit.config import schema
from llmkit.data.building import corpus
from llmkit.data.building.prepare import prepare

path, cache, die = sys.argv[1:]
if die == "die":  # hang in the middle, with the tokenizer written, until killed
    def hang(*_):
        print("half way", flush=True)
        sys.stdin.read()
    corpus._SourceWriter = hang
config = schema.Data(
    tokenizer=schema.Tokenizer(vocab_size=300), sequence_length=16, cache_dir=cache,
    sources=[schema.Source(type="text", path=path, separator="\\n")],
)
print(prepare(config, print).fingerprint, flush=True)
"""


def settings(path: Path, **changes: Any) -> schema.Data:
    fields: dict[str, Any] = {
        "tokenizer": schema.Tokenizer(type="bytes"),
        "sources": [schema.Source(type="text", path=str(path), separator="\n")],
        "sequence_length": 16,
        "cache_dir": str(path.parent / "cache"),
    }
    return schema.Data(**fields | changes)


def start(tmp_path: Path, text: Path, die: str = "live") -> subprocess.Popen[str]:
    script = tmp_path / "build_it.py"
    script.write_text(textwrap.dedent(SCRIPT))
    command = [sys.executable, str(script), str(text), str(tmp_path / "cache"), die]
    environment = os.environ | {"PYTHONPATH": str(Path(build.__file__).parents[2])}
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=environment)


def silent(line: str) -> None:
    pass


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_every_document_is_in_the_training_or_in_the_held_out_text(words: Callable[[str, int], Path]) -> None:
    text = words("w", 100)
    lines = text.read_text().splitlines()
    prepared = prepare(settings(text), silent)
    decode = prepared.tokenizer.decode
    train, heldout = split_heldout(100, 20)
    for reader, numbers in ((prepared.train[0].reader, train), (prepared.heldout[0].reader, heldout)):
        assert [decode(reader.document(i)) for i in range(len(numbers))] == [lines[n] for n in numbers]
        assert reader.index.text_bytes == sum(len(lines[n].encode()) for n in numbers)


def test_what_is_built_is_opened_and_not_built_again(
    words: Callable[[str, int], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = settings(words("w", 50))
    first = prepare(config, silent)
    monkeypatch.setattr(build, "write_corpus", None)
    second = prepare(config, silent)
    assert (second.folder, second.fingerprint) == (first.folder, first.fingerprint)


def test_settings_that_leave_the_tokens_alone_share_a_folder(words: Callable[[str, int], Path]) -> None:
    text = words("w", 50)
    first = prepare(settings(text), silent)
    heavier = [schema.Source(type="text", path=str(text), separator="\n", weight=7.0)]
    other = prepare(settings(text, sequence_length=8, document_masks=True, sources=heavier), silent)
    assert other.folder == first.folder
    assert other.fingerprint != first.fingerprint


@pytest.mark.parametrize(
    "change",
    [
        {"heldout_every": 5},
        {"errors": "replace"},
        {"tokenizer": schema.Tokenizer(type="bytes", end_of_text="<end>")},
    ],
)
def test_settings_that_decide_the_tokens_have_their_own_folder(
    words: Callable[[str, int], Path], change: dict[str, Any]
) -> None:
    text = words("w", 50)
    assert prepare(settings(text, **change), silent).folder != prepare(settings(text), silent).folder


def test_a_changed_text_is_built_anew(words: Callable[[str, int], Path]) -> None:
    text = words("w", 50)
    first = prepare(settings(text), silent)
    text.write_text(text.read_text() + "one more\n")
    second = prepare(settings(text), silent)
    assert second.folder != first.folder
    assert second.fingerprint != first.fingerprint


def test_a_fingerprint_tells_content_and_not_paths(words: Callable[[str, int], Path], tmp_path: Path) -> None:
    text = words("w", 50)
    copy = tmp_path / "elsewhere" / "copy"
    copy.parent.mkdir()
    copy.write_bytes(text.read_bytes())
    first, second = prepare(settings(text), silent), prepare(settings(copy), silent)
    assert first.folder != second.folder
    assert first.fingerprint == second.fingerprint


def test_a_build_that_fails_leaves_nothing_and_the_next_one_succeeds(
    words: Callable[[str, int], Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config = settings(words("w", 50))
    with monkeypatch.context() as patch:
        patch.setattr(corpus, "_Compressors", lambda: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            prepare(config, silent)
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".lock"]
    assert prepare(config, silent).train_tokens > 0


def test_a_killed_build_leaves_nothing_that_is_taken_for_data(
    words: Callable[[str, int], Path], tmp_path: Path
) -> None:
    text = words("w", 50)
    with start(tmp_path, text, "die") as process:
        assert process.stdout is not None
        while "half way" not in (line := process.stdout.readline()):
            assert line, "the build ended before it was killed"
        process.send_signal(signal.SIGKILL)
    leftovers = list((tmp_path / "cache").glob(".building-*"))
    assert len(leftovers) == 1
    assert (leftovers[0] / "tokenizer" / "tokenizer.json").exists()
    prepared = prepare(settings(text, tokenizer=schema.Tokenizer(vocab_size=300)), silent)
    prepared.train[0].reader.verify()
    assert not leftovers[0].exists()


def test_builders_at_once_end_with_one_folder(words: Callable[[str, int], Path], tmp_path: Path) -> None:
    text = words("w", 3000)
    processes = [start(tmp_path, text) for _ in range(3)]
    results = [process.communicate(timeout=60) for process in processes]
    assert [process.returncode for process in processes] == [0] * 3, results
    assert len({output.splitlines()[-1] for output, _ in results}) == 1
    assert sum("built in" in output for output, _ in results) == 1
    assert sorted(p.suffix for p in (tmp_path / "cache").iterdir()) == ["", ".lock"]


def test_without_locks_the_first_to_finish_wins(
    words: Callable[[str, int], Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config = settings(words("w", 50))

    def no_locks(*_: Any) -> None:
        raise OSError("not supported")

    def build_twice(*arguments: Any) -> None:
        monkeypatch.setattr(build, "write_corpus", corpus.write_corpus)
        prepare(config, silent)  # another process, faster than this one
        corpus.write_corpus(*arguments)

    monkeypatch.setattr("fcntl.flock", no_locks)
    monkeypatch.setattr(build, "write_corpus", build_twice)
    prepared = prepare(config, silent)
    prepared.train[0].reader.verify()
    assert sorted(p.suffix for p in (tmp_path / "cache").iterdir()) == ["", ".lock"]


def test_the_same_text_gives_the_same_files(words: Callable[[str, int], Path], tmp_path: Path) -> None:
    text, tokenizer = words("w", 300), schema.Tokenizer(vocab_size=300)
    folders = [
        prepare(settings(text, tokenizer=tokenizer, cache_dir=str(tmp_path / name)), silent).folder
        for name in ("a", "b")
    ]
    assert contents(folders[0]) == contents(folders[1])


def test_files_that_change_during_the_build_are_noticed(
    words: Callable[[str, int], Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    text = words("w", 50)

    def write_and_touch(*arguments: Any) -> None:
        corpus.write_corpus(*arguments)
        text.write_text("another text\n")

    monkeypatch.setattr(build, "write_corpus", write_and_touch)
    with pytest.raises(UserError, match="files changed while they were read"):
        prepare(settings(text), silent)
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".lock"]


def test_a_full_disk_is_a_fault_of_the_run(
    words: Callable[[str, int], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(build, "write_corpus", full)
    with pytest.raises(RunFault, match=r"cannot be written .No space left on device."):
        prepare(settings(words("w", 50)), silent)


def test_a_folder_appears_whole_by_one_rename_or_not_at_all(
    words: Callable[[str, int], Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fail(*_: Any) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("os.rename", fail)
    with pytest.raises(RunFault, match="Input/output error"):
        prepare(settings(words("w", 50)), silent)
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".lock"]


def test_a_cache_that_is_no_folder_is_named(words: Callable[[str, int], Path]) -> None:
    text = words("w", 50)
    with pytest.raises(UserError, match=r"data.cache_dir: .* cannot be made a folder"):
        prepare(settings(text, cache_dir=str(text)), silent)


def test_two_sources_of_one_name_are_refused(words: Callable[[str, int], Path]) -> None:
    text = str(words("w", 50))
    sources = [
        schema.Source(type="text", path=text, name="x"),
        schema.Source(type="text", path=text, name="x"),
    ]
    with pytest.raises(UserError, match=r"data.sources: 2 sources are named 'x'"):
        prepare(settings(Path(text), sources=sources), silent)


def test_sources_are_named_by_type_and_place(
    prepared_bytes: Callable[..., tuple[Prepared, schema.Data]],
) -> None:
    prepared, _ = prepared_bytes()
    assert [(source.name, source.weight) for source in prepared.train] == [("text-0", 3.0), ("text-1", 1.0)]
