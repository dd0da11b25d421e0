"""The comparison with transformers finds what is wrong with an export."""

from __future__ import annotations

import json
import shutil
import sys

import psutil
import pytest
import torch
from safetensors.torch import load_file, save_file

from llmkit.convert import proof
from llmkit.errors import RunFault
from llmkit.hf.folder import HFFolder
from tests.data.tokens.tokenizers_for_tests import bytes_tokenizer
from tests.hf.models import save
from tests.shapes import LLAMA_STYLE


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("proof") / "llama"
    save("llama", folder, vocab_size=257)
    bytes_tokenizer("<|end|>").save(folder)
    return folder


def prove(original, exported, dtype=None):
    weights = HFFolder(original)
    return proof.prove(weights, weights.model_shape, weights.tokenizer(), exported, dtype)


def test_the_same_folder_is_proved(saved):
    found = prove(saved, saved)
    assert found.difference < 1e-6 and found.tokens == 64 and found.texts > 10
    assert f"relative difference {found.difference:.1e} in fp32 on 64 tokens" in str(found)


def test_two_matrices_that_changed_places_are_found(saved, tmp_path):
    shutil.copytree(saved, tmp_path / "copy")
    tensors = load_file(saved / "model.safetensors")
    gate, up = (f"model.layers.1.mlp.{name}.weight" for name in ("gate_proj", "up_proj"))
    tensors[gate], tensors[up] = tensors[up], tensors[gate]
    save_file(tensors, tmp_path / "copy/model.safetensors", {"format": "pt"})
    with pytest.raises(RunFault, match="exported model does not compute what llmkit does"):
        prove(saved, tmp_path / "copy")


def test_rounding_that_was_asked_for_is_no_difference(saved, tmp_path):
    shutil.copytree(saved, tmp_path / "copy")
    tensors = {name: each.bfloat16() for name, each in load_file(saved / "model.safetensors").items()}
    save_file(tensors, tmp_path / "copy/model.safetensors", {"format": "pt"})
    assert prove(saved, tmp_path / "copy", torch.bfloat16).difference < 1e-6
    with pytest.raises(RunFault, match="does not compute"):
        prove(saved, tmp_path / "copy")


def test_a_tokenizer_that_reads_text_otherwise_is_found(saved, tmp_path):
    shutil.copytree(saved, tmp_path / "copy")
    spec = json.loads((saved / "tokenizer.json").read_text()) | {"normalizer": {"type": "NFD"}}
    (tmp_path / "copy/tokenizer.json").write_text(json.dumps(spec))
    with pytest.raises(RunFault, match="does not read text as this one does"):
        prove(saved, tmp_path / "copy")


def test_what_does_not_fit_into_memory_is_not_tried(saved, monkeypatch):
    shape = HFFolder(saved).model_shape
    assert proof.cannot_prove(shape) is None
    with monkeypatch.context() as patch:
        memory = psutil.virtual_memory()._replace(available=100_000)
        patch.setattr(proof.psutil, "virtual_memory", lambda: memory)
        assert "GB of memory" in proof.cannot_prove(shape)
    monkeypatch.setattr("llmkit.extras.importlib.util.find_spec", lambda name: None)
    assert "transformers is not installed" in proof.cannot_prove(shape)


def test_an_adapter_is_compared_without_code_from_the_hub(tmp_path, monkeypatch):
    """PEFT imports bitsandbytes, which would fetch some where the package `kernels` is installed."""
    (tmp_path / "kernels.py").write_text("")
    (tmp_path / "peft.py").write_text(
        "__version__, fetches = '0', True\ntry:\n    import kernels\nexcept ImportError:\n    fetches = False"
    )
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("peft", "kernels"):
        monkeypatch.setitem(sys.modules, name, None)
        del sys.modules[name]
    monkeypatch.setattr(proof, "_our_logits", lambda *arguments: torch.ones(2))
    monkeypatch.setattr(proof, "_their_logits", lambda *arguments, **options: torch.ones(2))
    tokenizer = bytes_tokenizer("<|end|>")
    said = proof.prove_adapter(None, LLAMA_STYLE, tokenizer, tmp_path, tmp_path)
    assert said.startswith("peft 0 gives llmkit's logits") and not sys.modules["peft"].fetches
