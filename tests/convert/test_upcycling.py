"""`llmkit import --upcycle`: a mixture that computes what the dense model does."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from llmkit.checkpoint.read import verify
from llmkit.cli import main
from llmkit.config.parameters import EXPERTS
from llmkit.config.shape import ModelShape
from llmkit.inference import load_model
from llmkit.precision import PRECISIONS
from llmkit.weights import model_of, open_weights
from tests.data.tokens.tokenizers_for_tests import bytes_tokenizer
from tests.hf.models import save


@pytest.fixture
def dense(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    save("llama", tmp_path / "dense", vocab_size=260).save_pretrained(tmp_path / "dense")
    bytes_tokenizer("<|end|>").save(tmp_path / "dense")
    return tmp_path / "dense"


def logits(path: Path, tokens: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return load_model(open_weights(path), torch.device("cpu"), PRECISIONS["fp32"]).logits(tokens)


def test_a_mixture_of_copies_computes_what_the_dense_model_does(dense: Path, capsys) -> None:
    assert main(["import", "dense", "imported"]) == 0
    assert main(["import", "dense", "mixture", "--upcycle", "5"]) == 0
    assert main(["import", "imported", "again", "--upcycle", "5"]) == 0  # of a checkpoint of llmkit
    assert "upcycled to 5 experts, 2 for a token" in capsys.readouterr().out
    tokens = torch.randint(256, (3, 17), generator=torch.Generator().manual_seed(0))
    wanted = logits(dense, tokens)
    for name in ("mixture", "again"):
        path = dense.parent / name
        assert verify(path) == []
        shape = model_of(open_weights(path))
        assert isinstance(shape, ModelShape) and shape.moe.num_experts == 5
        found = logits(path, tokens)
        assert float((found - wanted).norm() / wanted.norm()) <= 1e-6
    weights = open_weights(dense.parent / "mixture")
    routers = [weights.read(f"blocks.{layer}.mlp.router.weight", ((0, 5), (0, 2))) for layer in (0, 1)]
    assert not torch.equal(*routers) and all(0.0 < float(each.std()) < 0.1 for each in routers)
    assert sum(EXPERTS in name for name in weights.names()) == shape.num_hidden_layers * 5 * 3
    assert main(["import", "dense", "single", "--upcycle", "1"]) == 0
    assert "upcycled to 1 experts, 1 for a token" in capsys.readouterr().out


def test_what_cannot_be_upcycled_is_refused(dense: Path, capsys) -> None:
    save("gpt2", dense.parent / "biased", vocab_size=260).save_pretrained(dense.parent / "biased")
    bytes_tokenizer("<|end|>").save(dense.parent / "biased")
    assert main(["import", "dense", "mixture", "--upcycle", "2"]) == 0
    for arguments, message in (
        (["biased", "out", "--upcycle", "4"], "its MLP has biases"),
        (["mixture", "out", "--upcycle", "4"], "it is a mixture of experts already"),
        (["mixture", "out"], "is a checkpoint of llmkit already"),
        (["dense", "out", "--upcycle", "4", "--experts-per-token", "5"], "5 is more than"),
        (["dense", "out", "--experts-per-token", "1"], "--experts-per-token is for --upcycle"),
        (["dense", "out", "--upcycle", "0"], "is no number of experts"),
    ):
        try:
            assert main(["import", *arguments]) == 2
        except SystemExit as error:  # argparse
            assert error.code == 2
        assert message in capsys.readouterr().err
        assert not (dense.parent / "out").exists()
