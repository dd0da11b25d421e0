"""TensorBoard's event files hold what metrics.jsonl holds."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmkit.errors import UserError
from llmkit.monitor.tensorboard import TensorBoardSink
from tests.program import rows, train

pytest.importorskip("tensorboard", reason="the extra `dev` brings it")


def written(folder: Path) -> dict[str, dict[int, float]]:
    """The newest value of each name and step."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    return {name: {e.step: e.value for e in events.Scalars(name)} for name in events.Tags()["scalars"]}


def test_every_number_of_a_run_and_of_its_resume_is_there(project: Path) -> None:
    settings = ["monitor.tensorboard=true", "monitor.log_every=3", "evaluate.every_steps=6"]
    assert train("train.max_steps=6", *settings) == 0
    assert train("train.max_steps=12", *settings) == 0
    folder = project / "runs" / "tiny"
    found = written(folder / "tensorboard")
    for name in ("loss", "loss_mean", "grad_norm", "learning_rate", "tokens", "eval_loss"):
        wanted = {row["step"]: row[name] for row in rows(folder) if row.get(name) is not None}
        assert found[name] == pytest.approx(wanted, rel=1e-6), name
    assert list(found["loss"]) == [1, 3, 6, 9, 12]


def test_steps_that_are_done_again_replace_those_of_before(tmp_path: Path) -> None:
    for steps, value in ((range(1, 7), 1.0), (range(4, 8), 2.0)):
        sink = TensorBoardSink(tmp_path)
        for step in steps:
            sink.write({"step": step, "loss": value, "eval_loss": None, "mfu_peak": "a label"})
        sink.close()
    assert written(tmp_path) == {"loss": dict.fromkeys((1, 2, 3), 1.0) | dict.fromkeys((4, 5, 6, 7), 2.0)}


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmkit.extras.importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"monitor\.tensorboard: .*pip install 'llmkit\[tensorboard\]'"):
        TensorBoardSink(tmp_path)
