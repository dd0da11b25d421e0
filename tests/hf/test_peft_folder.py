"""Adapters as PEFT's folders: what PEFT computes with them, and what is read back."""

from __future__ import annotations

import json

import pytest
import torch
from peft import PeftModel

from llmkit.config.adapters import is_adapter
from llmkit.config.lora_section import Lora
from llmkit.hf.folder import HFFolder
from llmkit.hf.peft_adapters import PeftAdapters
from llmkit.hf.peft_folder import write_peft_folder
from llmkit.model.gpt import GPT
from llmkit.model.lora import add_adapters
from llmkit.parity.compare import relative_error
from tests.hf.models import logits, save
from tests.shapes import randomise

SOME = ["blocks.0.attention.q_proj", "blocks.1.attention.?_proj", "up_proj"]


class Adapted:
    """A model of a folder with random adapters."""

    def __init__(self, folder, lora: Lora) -> None:
        self.base, self.lora = HFFolder(folder), lora
        self.model = GPT(self.base.model_shape, seed=None)
        add_adapters(self.model, lora)
        randomise(self.model).eval().has_weights = True
        self.full = {}
        weights = dict(self.model.named_parameters())
        with torch.no_grad():
            for stored, parts in self.model.parameter_slices().items():
                for part in parts:
                    rows = weights[stored][part.start : part.stop]
                    if not is_adapter(part.name):
                        rows.copy_(self.base.read(part.name, part.box))
                    self.full[part.name] = rows.detach().clone()
        self.layers = {name.removesuffix(".lora_A") for name in self.full if name.endswith(".lora_A")}

    def matrices(self, layer: str) -> tuple[torch.Tensor, torch.Tensor]:
        return self.full[f"{layer}.lora_A"], self.full[f"{layer}.lora_B"]

    def write(self, out) -> None:
        model, base = (self.base.model_shape, self.base.architecture), str(self.base.path)
        write_peft_folder(out, *model, self.lora, self.layers, self.matrices, base)


@pytest.mark.parametrize("targets", [["*_proj"], SOME], ids=["all", "some"])
@pytest.mark.parametrize("case", ["llama", "gpt2", "phi3"])
def test_peft_computes_what_we_do_and_we_read_the_same_back(case, targets, tmp_path):
    plain = save(case, tmp_path / "base")
    adapted = Adapted(tmp_path / "base", Lora(rank=3, alpha=7.0, targets=targets))
    out = tmp_path / "adapter"
    out.mkdir()
    adapted.write(out)
    tokens = torch.randint(90, (2, 11))
    ours = torch.stack([adapted.model.logits(tokens[:, : n + 1]) for n in range(11)], 1)
    theirs = logits(PeftModel.from_pretrained(plain, out).eval(), tokens)
    assert relative_error(theirs, ours) < 1e-5
    assert relative_error(logits(save(case, tmp_path / "base"), tokens), ours) > 1e-2
    read = PeftAdapters(out, adapted.base.model_shape, adapted.base.architecture)
    for layer in adapted.layers:
        a, b = adapted.matrices(layer)
        change = read.change(layer, ((1, len(b) - 2), (2, a.shape[1])))
        torch.testing.assert_close(change, (7.0 / 3 * b @ a)[1:-2, 2:], rtol=1e-5, atol=1e-6)
    assert read.layers >= adapted.layers


def test_names_of_modules_are_as_short_as_they_can_be(tmp_path):
    save("gpt2", tmp_path)
    Adapted(tmp_path, Lora(rank=2)).write(tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["target_modules"] == ["c_attn", "c_fc", "c_proj"] and config["fan_in_fan_out"] is True
    assert (config["rank_pattern"], config["alpha_pattern"]) == ({"c_attn": 6}, {"c_attn": 96.0})
