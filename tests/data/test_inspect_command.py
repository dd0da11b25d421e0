"""`llmkit data inspect` by its command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from llmkit.cli import main


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Settings of a stored source, with a record that cannot be read, and a live one."""
    folder = tmp_path_factory.mktemp("inspect")
    lines = [json.dumps({"text": f"text number {k}"}) for k in range(200)]
    lines[16] = "{broken"
    (folder / "a.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "b.jsonl").write_text("".join(json.dumps({"text": f"live {k}"}) + "\n" for k in range(300)))
    settings = {
        "run": {"name": "looked-at", "dir": str(folder / "runs")},
        "train": {"max_steps": 9, "global_batch_size": 4},
        "data": {
            "tokenizer": {"type": "bytes"},
            "sources": [
                {"name": "stored", "type": "jsonl", "path": str(folder / "a.jsonl")},
                {"name": "live", "type": "jsonl", "path": str(folder / "b.jsonl"), "live": True},
            ],
            "sequence_length": 32,
            "errors": "skip",
            "cache_dir": str(folder / "cache"),
        },
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


def inspect(config: Path, capsys: pytest.CaptureFixture[str], *options: str) -> str:
    assert main(["data", "inspect", str(config), *options]) == 0
    return capsys.readouterr().out


def read(config: Path, capsys: pytest.CaptureFixture[str], *options: str) -> Any:
    return json.loads(inspect(config, capsys, "--json", *options))


def test_everything_can_be_had_as_json(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = read(config, capsys, "--count", "2")
    stored, live = found["sources"]
    assert (stored["name"], stored["kind"], stored["left_out"]) == ("stored", "shards", {"broken JSON": 1})
    assert stored["documents"] + stored["heldout_documents"] == 199
    assert stored["lengths"]["documents"] == stored["documents"]
    assert sum(stored["lengths"]["up_to"].values()) == stored["documents"]
    assert stored["frequencies"]["counted"] == stored["tokens"]
    assert sum(count for _, count in stored["frequencies"]["frequent"]) < stored["tokens"]
    assert Path(stored["folder"], "train", "index.json").is_file()
    assert (live["kind"], live["files"], live["documents"]) == ("live", 1, None)
    mixture = found["mixture"]
    assert mixture["stages"] == [
        {"step": 1, "weights": {"stored": 1.0, "live": 1.0}, "shares": {"stored": 0.5, "live": 0.5}}
    ]
    assert sum(source["read"] for source in mixture["sources"]) == 36
    assert [row["source"] for row in found["rows"]] == ["stored"] * 2 + ["live"]
    assert all(len(row["tokens"]) == 33 and row["targets"] == [[1, 33]] for row in found["rows"])


def test_the_rows_of_a_step_and_at_a_position_are_shown(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = read(config, capsys, "--step", "3")
    assert found["step"] == 3 and [row["position"] for row in found["rows"]] == [8, 9, 10, 11]
    assert {row["source"] for row in found["rows"]} == {"stored", "live"}
    for row in found["rows"]:
        assert read(config, capsys, "--sample", str(row["position"])) == {"step": None, "rows": [row]}
    shown = inspect(config, capsys, "--step", "3", "--color", "never")
    live = next(row for row in found["rows"] if row["source"] == "live")
    assert f"=== position {live['position']}: live, epoch 0, row {live['row']} of lane 0 ===" in shown
    assert f"{config.parent}/b.jsonl:" in shown and shown.count("=== position ") == 4


def test_mistakes_are_refused(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "inspect", str(config), "--step", "10"]) == 2
    assert "--step 10: the run has 9 steps (train.max_steps)" in capsys.readouterr().err
    assert main(["data", "inspect", str(config), "--sample", str(2**62)]) == 2
    assert "lies behind the" in capsys.readouterr().err
    for options in (["--step", "1", "--sample", "1"], ["--step", "0"], ["--rejects"]):
        with pytest.raises(SystemExit):
            main(["data", "inspect", str(config), *options])
        assert "llmkit data inspect: error: argument" in capsys.readouterr().err


def test_rejects_are_written_before_anything_is_built(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, cache = tmp_path / "rejects", tmp_path / "cache"
    options = ["--rejects", str(out), f"data.cache_dir={cache}", "data.errors=raise"]
    assert "stored: 1 document left out: 1 broken JSON\nlive: every record" in inspect(
        config, capsys, *options
    )
    line = json.loads(out.read_text())
    assert (line["source"], line["location"]) == ("stored", f"{config.parent}/a.jsonl:17")
    out.unlink()
    assert read(config, capsys, *options) == {"stored": {"broken JSON": 1}, "live": {}}
    assert not cache.exists()


def test_a_run_whose_later_rows_are_others_is_told(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = config.parent / "runs" / "went-on"
    run.mkdir(parents=True)
    events = [
        {"event": "start", "step": 0},
        {"event": "data_change", "step": 4, "differences": []},
        {"event": "rollback", "step": 8, "from_step": 8, "to_step": 6},
    ]
    (run / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    for step, told in (
        ("4", []),
        ("5", ["other data after step 4"]),
        ("7", ["after step 4", "rows after step 6"]),
    ):
        assert main(["data", "inspect", str(config), "run.name=went-on", "--step", step, "--json"]) == 0
        out, err = capsys.readouterr()
        assert [row["position"] // 4 for row in json.loads(out)["rows"]] == [int(step) - 1] * 4
        lines = [line for line in err.splitlines() if "the run in" in line]
        assert len(lines) == len(told) and all(what in line for what, line in zip(told, lines, strict=True))
