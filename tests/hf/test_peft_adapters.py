"""Adapters that PEFT itself has written, and folders that are refused."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from llmkit.errors import UserError
from llmkit.hf.folder import HFFolder
from llmkit.hf.peft_adapters import PeftAdapters, base_of, is_peft_folder
from llmkit.parallel.slices import full_box
from tests.hf.models import save
from tests.shapes import randomise

KINDS = {
    "llama": {"target_modules": ["q_proj", "v_proj", "down_proj"], "use_rslora": True},
    "gpt2": {
        "target_modules": ["c_attn", "mlp.c_proj"], "rank_pattern": {"h.1.attn.c_attn": 5},
        "alpha_pattern": {"c_proj": 3}, "fan_in_fan_out": True,
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Base and adapter of each kind, and the weights as PEFT merges them."""
    root, merged = tmp_path_factory.mktemp("peft"), {}
    for case, settings in KINDS.items():
        model = get_peft_model(save(case, root / case), LoraConfig(r=3, lora_alpha=7, **settings))
        for name, parameter in model.named_parameters():
            if ".lora_" in name:
                randomise(torch.nn.ParameterList([parameter]))
        model.peft_config["default"].base_model_name_or_path = f"../{case}"
        model.save_pretrained(root / f"{case}-adapter")
        model.merge_and_unload().save_pretrained(root / f"{case}-merged")
        merged[case] = HFFolder(root / f"{case}-merged")
    return root, merged


@pytest.fixture
def adapter(written, tmp_path):
    """The Llama's base, and a copy of its adapter to spoil."""
    shutil.copytree(written[0] / "llama-adapter", tmp_path / "adapter")
    return HFFolder(written[0] / "llama"), tmp_path / "adapter"


@pytest.mark.parametrize("case", KINDS)
def test_what_is_added_is_what_peft_adds(written, case):
    root, merged = written
    folder = root / f"{case}-adapter"
    base = HFFolder(base_of(folder))
    assert is_peft_folder(folder) and not is_peft_folder(base.path)
    adapters = PeftAdapters(folder, base.model_shape, base.architecture)
    for name in base.names():
        region = full_box(base.shape(name))
        weight, layer = base.read(name, region), name.removesuffix(".weight")
        if layer in adapters.layers:
            weight = weight + adapters.change(layer, region)
        torch.testing.assert_close(weight, merged[case].read(name, region), rtol=1e-5, atol=1e-6)
    assert len(adapters.layers) == {"llama": 9, "gpt2": 12}[case]


def rewrite(folder, **changes):
    config = json.loads((folder / "adapter_config.json").read_text()) | changes
    (folder / "adapter_config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"use_dora": True}, "only plain LoRA is supported, and this has use_dora = true"),
        ({"peft_type": "LOHA", "bias": "all"}, 'this has bias = "all", peft_type = "LOHA"'),
        ({"modules_to_save": ["lm_head"], "x": 0}, 'this has modules_to_save = \\["lm_head"\\]$'),
        ({"init_lora_weights": "pissa"}, "init_lora_weights"),
        ({"alpha_pattern": {"(a+)+b": 2}}, "alpha_pattern"),
        ({"lora_alpha": "many"}, 'lora_alpha = "many"'),
    ],
)
def test_what_is_not_plain_lora_is_refused(adapter, changes, what):
    base, folder = adapter
    rewrite(folder, **changes)
    with pytest.raises(UserError, match=what):
        PeftAdapters(folder, base.model_shape, base.architecture)


def test_an_adapter_of_another_model_is_refused(adapter, written):
    base, folder = adapter
    other = HFFolder(written[0] / "gpt2")
    with pytest.raises(UserError, match="must be absent; was the adapter trained on another model"):
        PeftAdapters(folder, other.model_shape, other.architecture)
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    name = "base_model.model.model.layers.1.mlp.down_proj.lora_B.weight"
    save_file({**tensors, name: tensors[name][:-1].contiguous()}, file)
    with pytest.raises(UserError, match=r"down_proj.lora_B.weight is \(47, 3\), .* must be \(48, 3\)"):
        PeftAdapters(folder, base.model_shape, base.architecture)


def test_a_base_that_is_not_on_the_disk_is_named(adapter):
    rewrite(adapter[1], base_model_name_or_path="meta-llama/Llama-3.2-1B")
    with pytest.raises(UserError, match=r'"meta-llama/Llama-3\.2-1B", is no folder here; download it'):
        base_of(adapter[1])
