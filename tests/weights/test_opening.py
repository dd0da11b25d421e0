"""Weights from anywhere: what is read, and what is said where there are none."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from llmkit.checkpoint.read import open as open_checkpoint
from llmkit.cli import main
from llmkit.config.initial_model import Asked
from llmkit.errors import UserError
from llmkit.weights import CheckpointWeights, look_at, model_of, open_weights, read_model
from tests.program import make_project, train


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A folder with a finished run of two steps."""
    folder = tmp_path_factory.mktemp("weights")
    make_project(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert train("train.max_steps=2", "train.ema.decay=0.9") == 0
    return folder


def test_the_weights_of_a_run_are_the_masters_of_its_newest_checkpoint(project):
    weights, checkpoint = open_weights(project / "runs/tiny"), open_checkpoint(project / "runs/tiny")
    assert isinstance(weights, CheckpointWeights) and weights.path.name == "step-00000002"
    assert set(weights.names()) == set(checkpoint.names("master"))
    name = "blocks.1.mlp.down_proj.weight"
    rows, columns = weights.shape(name)
    region = ((1, rows), (2, columns - 3))
    assert torch.equal(weights.read(name, region), checkpoint.read(name, "master")[1:, 2:-3])
    assert weights.tokenizer().vocab_size == 257


def test_the_moving_average_is_taken_where_it_is_asked_for(project, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(project)
    run, checkpoint = Path("runs/tiny"), open_checkpoint(Path("runs/tiny"))
    plain, averaged = open_weights(run), open_weights(run, ema=True)
    assert list(averaged.names()) == list(plain.names()) and averaged.digest() != plain.digest()
    name = "blocks.1.mlp.down_proj.weight"
    region = tuple((0, size) for size in plain.shape(name))
    stored = {kind: checkpoint.read(name, kind) for kind in ("master", "ema")}
    assert torch.equal(averaged.read(name, region), stored["ema"])
    assert not torch.equal(stored["ema"], stored["master"])
    assert main(["export", "runs/tiny", str(tmp_path / "out"), "--ema", "--no-check"]) == 0
    assert "| moving average | of the weights" in (tmp_path / "out/README.md").read_text()
    exported = load_file(tmp_path / "out/model.safetensors")["model.layers.1.mlp.down_proj.weight"]
    assert torch.equal(exported, stored["ema"])
    capsys.readouterr()
    for command in (["generate", "runs/tiny"], ["evaluate", "runs/tiny"]):
        more = ["--json", *(["--prompt", "the", "--logprobs", "1"] if command[0] == "generate" else [])]
        answers = []
        for ema in ([], ["--ema"]):
            assert main([*command, *more, *ema]) == 0
            answers.append(capsys.readouterr().out)
        assert answers[0] != answers[1]


def test_without_a_moving_average_it_is_one_message(project, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(project)
    assert train("run.name=plain", "train.max_steps=1") == 0
    assert main(["export", "runs/plain", str(tmp_path / "out"), "--no-check"]) == 0
    for path in ("runs/plain", str(tmp_path / "out")):
        with pytest.raises(UserError, match="holds no moving average of the weights; leave out --ema"):
            open_weights(Path(path), ema=True)


def test_a_copy_has_the_digest_of_the_original_and_another_step_another_one(project, tmp_path):
    copy = tmp_path / "elsewhere"
    shutil.copytree(open_weights(project / "runs/tiny").path, copy)
    assert open_weights(copy).digest() == open_weights(project / "runs/tiny").digest()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(project)
        assert train("run.name=longer", "train.max_steps=3") == 0
    assert open_weights(project / "runs/longer").digest() != open_weights(copy).digest()


def test_a_checkpoint_of_a_run_by_name(project):
    expected = open_weights(project / "runs/tiny").path
    assert open_weights(project / "runs/tiny@2").path == expected
    assert look_at(project / "runs/tiny@step-2").path == expected
    with pytest.raises(UserError, match="is marked as the best"):
        open_weights(project / "runs/tiny@best")
    found = read_model(Asked(project / "runs/tiny@2", project / "runs/new", False))
    assert found.origin == str(expected)
    with pytest.raises(UserError, match="is the run's own folder"):
        read_model(Asked(project / "runs/tiny@2", project / "runs/tiny", False))


def test_a_run_goes_on_with_its_own_model_and_may_not_start_from_itself(project, monkeypatch):
    monkeypatch.chdir(project)
    nowhere, tiny = Path("nowhere"), Path("runs/tiny")
    found = read_model(Asked(nowhere, tiny, False))
    assert found.resumed and found.spec == model_of(open_weights(tiny))
    found = read_model(Asked(tiny, Path("runs/new"), False))
    assert not found.resumed and found.origin == "runs/tiny/checkpoints/step-00000002"
    for path in (tiny, Path("runs/../runs/tiny/checkpoints")):
        with pytest.raises(UserError, match="is the run's own folder; give the new run another"):
            read_model(Asked(path, tiny, False))


def test_what_is_only_looked_at_passes_over_a_damaged_manifest(project, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(project / "runs/tiny", run)
    later = run / "checkpoints/step-00000003"
    shutil.copytree(run / "checkpoints/step-00000002", later)
    (later / "manifest.json").write_bytes(b"{}")
    assert look_at(run).path.name == "step-00000002"
    shutil.rmtree(run / "checkpoints/step-00000002")
    with pytest.raises(UserError, match="none of the 1 checkpoints in it is good"):
        look_at(run)


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("nowhere", "nowhere: no such folder; name a run folder"),
        ("corpsu", "corpsu: no such folder; did you mean corpus?"),
        ("meta-llama/Llama-3.2-1B", "Nothing is downloaded: fetch a model of the hub"),
        ("https://example.org/model", "Nothing is downloaded: fetch a model of the hub"),
        ("tiny.yaml", "tiny.yaml: is no folder; name a run folder"),
        ("corpus", "there is no checkpoint in it"),
    ],
)
def test_what_holds_no_weights_is_one_message(project, path, says, monkeypatch):
    monkeypatch.chdir(project)
    for find in (open_weights, look_at):
        with pytest.raises(UserError, match=says):
            find(Path(path))
