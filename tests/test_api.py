"""The public interface: its names, what importing it leaves alone, and runs from Python."""

from __future__ import annotations

import inspect
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import llmkit
from llmkit.cli import main
from llmkit.errors import UserError
from tests.program import environment, make_project

ROOT = Path(__file__).parents[1]
LOOK = """
import json, logging, os, sys, warnings
before = dict(os.environ), logging.root.level, list(warnings.filters)
import llmkit
light = "torch" not in sys.modules and "pydantic" not in sys.modules
import torch, numpy
defaults = torch.get_default_dtype(), torch.get_num_threads(), torch.random.get_rng_state().tolist()
levels = {name: log.level for name, log in logging.root.manager.loggerDict.items() if hasattr(log, "level")}
filters = list(warnings.filters)
for name in llmkit.__all__:
    getattr(llmkit, name)
after = torch.get_default_dtype(), torch.get_num_threads(), torch.random.get_rng_state().tolist()
print(json.dumps({
    "light": light,
    "environment": dict(os.environ) == before[0],
    "root level": logging.root.level == before[1],
    "filters": [f for f in warnings.filters if f not in filters] == [],
    "torch": defaults == after,
    "levels": [n for n, v in levels.items() if logging.getLogger(n).level != v],
    "called": callable(llmkit.train) and not isinstance(llmkit.train, type(sys)),
}))
"""


def test_importing_it_is_light_and_changes_nothing():
    found = subprocess.run(
        [sys.executable, "-c", LOOK], env=environment(), cwd=ROOT, capture_output=True, text=True, check=True
    )
    answers = json.loads(found.stdout)
    assert answers.pop("levels") == []
    assert answers == dict.fromkeys(answers, True)


def test_every_public_name_is_documented():
    page = (ROOT / "docs" / "api.md").read_text()
    named = set(re.findall(r"^\| (.+?) \|", page, re.M))
    words = {word for cell in named for word in re.findall(r"`(\w+)", cell)}
    assert set(llmkit.__all__) == words
    assert [name for name in llmkit.__all__ if not inspect.getdoc(getattr(llmkit, name))] == []
    assert set(llmkit.__all__) <= set(dir(llmkit))


def test_it_is_typed():
    assert (ROOT / "llmkit" / "py.typed").exists()
    assert all(inspect.signature(each).return_annotation for each in (llmkit.load, llmkit.train))


def test_what_does_not_exist_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'trian'"):
        llmkit.trian  # noqa: B018


def test_the_function_stays_when_the_module_is_imported():
    import llmkit.train

    assert inspect.isfunction(llmkit.train)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("project")
    make_project(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        loaded = llmkit.load("tiny.yaml", ["train.max_steps=6", "run.deterministic=false"])
        yield llmkit.train(loaded)


def test_a_run_gives_its_record(run):
    assert run.done and run.config.train.max_steps == 6 and repr(run) == "Run('runs/tiny')"
    assert [row["step"] for row in run.metrics if "loss" in row] == [1, 2, 3, 4, 5, 6]
    assert run.events[0]["event"] == "start"
    assert [path.name for path in run.checkpoints] == ["step-00000005", "step-00000006"]


def test_a_run_gives_its_model(run):
    model = run.model(device="cpu", precision="fp32")
    assert not model.training and model.vocab_size == 257
    assert run.generate("the", 3, temperature=0.0) == run.generate("the", 3, temperature=0.0)
    loss = run.evaluate(note=lambda line: None)
    assert loss.loss == pytest.approx(run.metrics[-1]["eval_loss"], rel=1e-5)
    assert loss.bits_per_byte == pytest.approx(run.metrics[-1]["eval_bits_per_byte"], rel=1e-5)


def test_a_checkpoint_and_an_export_are_trained_models(run, tmp_path):
    stored = llmkit.TrainedModel(run.checkpoints[-1])
    assert stored.generate("the", 3, temperature=0.0) == run.generate("the", 3, temperature=0.0)
    assert stored.evaluate(note=lambda line: None) == run.evaluate(note=lambda line: None)
    assert main(["export", str(run.path), str(tmp_path / "out"), "--no-check"]) == 0
    export = llmkit.TrainedModel(tmp_path / "out")
    assert export.generate("the", 3, temperature=0.0) == run.generate("the", 3, temperature=0.0)
    assert repr(export) == f"TrainedModel('{tmp_path}/out')"
    with pytest.raises(UserError, match=r"no run of llmkit made it.*--data"):
        export.evaluate()


def test_a_finished_run_is_not_trained_again(run):
    again = llmkit.train(llmkit.load("tiny.yaml", ["train.max_steps=6", "run.deterministic=false"]))
    assert again.metrics == run.metrics
    with pytest.raises(UserError, match="--fresh"):
        llmkit.train(llmkit.load("tiny.yaml", ["run.deterministic=false"]), fresh=True)


def test_what_is_no_run_folder_is_refused(tmp_path):
    with pytest.raises(UserError, match="no run folder"):
        llmkit.Run(tmp_path)


@pytest.mark.parametrize("name", ["hooks", "sinks"])
def test_a_hook_that_is_in_no_list_is_refused(run, name):
    with pytest.raises(UserError, match=rf"train: {name} must be a list, not Hook; put it into \[...\]"):
        llmkit.train(llmkit.Loaded, **{name: llmkit.Hook()})


@pytest.mark.parametrize("given", ["PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"])
def test_segments_of_gpu_memory_may_grow_unless_the_user_has_chosen(given: str) -> None:
    from llmkit.api import let_segments_grow

    variables: dict[str, str] = {}
    let_segments_grow(variables)
    assert variables == {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}
    chosen = {given: "max_split_size_mb:512"}
    let_segments_grow(chosen)
    assert chosen == {given: "max_split_size_mb:512"}


def test_determinism_that_comes_too_late_is_warned_about():
    from llmkit.api import ask_for_determinism

    variables: dict[str, str] = {}
    with pytest.warns(UserWarning, match="set MKL_CBWR=COMPATIBLE"):
        ask_for_determinism(variables)
    assert variables["MKL_CBWR"] == "COMPATIBLE"
