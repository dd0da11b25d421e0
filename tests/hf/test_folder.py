"""Folders in Hugging Face's format: read by region, and refused when they are not what they say."""

from __future__ import annotations

import json
import os
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from llmkit.errors import UserError
from llmkit.hf.folder import HFFolder, is_hf_folder
from llmkit.weights import open_weights
from tests.data.tokens.tokenizers_for_tests import bytes_tokenizer
from tests.hf.models import save


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A Llama and a GPT-2 as transformers saves them, in several files."""
    root = tmp_path_factory.mktemp("hf")
    for case in ("llama", "llama-biases-tied", "gpt2"):
        save(case, root / case, "40KB")
    return root


@pytest.fixture
def llama(saved, tmp_path):
    """A copy to spoil, of one file."""
    save("llama", tmp_path / "llama")
    return tmp_path / "llama"


def change(folder, **changes):
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config))


def rewrite(folder, edit):
    """Changes the tensors of a folder with one file."""
    tensors = load_file(folder / "model.safetensors")
    edit(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def test_regions_are_those_of_the_full_tensors(saved):
    folder = HFFolder(saved / "gpt2")
    whole = folder.read("blocks.2.attention.v_proj.weight", ((0, 44), (0, 44)))
    assert torch.equal(folder.read("blocks.2.attention.v_proj.weight", ((5, 40), (7, 44))), whole[5:40, 7:44])
    assert folder.read("blocks.2.attention.v_proj.weight", ((5, 5), (7, 44))).shape == (0, 37)
    assert folder.shape("blocks.2.mlp.up_proj.weight") == (100, 44)
    part = folder.read("norm.weight", ((3, 9),))
    part.zero_()  # is not the file's memory
    assert folder.read("norm.weight", ((3, 9),)).all()
    with pytest.raises(ValueError, match="does not lie inside"):
        folder.read("norm.weight", ((0, 45),))


def test_names_without_the_prefix_are_read_too(saved, tmp_path):
    """As the hub's gpt2 has them, with the masks that older versions stored."""
    shutil.copytree(saved / "gpt2", tmp_path / "bare")
    index = json.loads((tmp_path / "bare/model.safetensors.index.json").read_text())["weight_map"]
    tensors = {}
    for file in set(index.values()):
        tensors |= load_file(tmp_path / "bare" / file)
        (tmp_path / "bare" / file).unlink()
    (tmp_path / "bare/model.safetensors.index.json").unlink()
    bare = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
    save_file(bare | {"h.0.attn.bias": torch.ones(1, 1, 64, 64)}, tmp_path / "bare/model.safetensors")
    name, region = "blocks.1.attention.q_proj.weight", ((0, 44), (0, 44))
    assert torch.equal(
        HFFolder(tmp_path / "bare").read(name, region), HFFolder(saved / "gpt2").read(name, region)
    )


def test_types_are_kept(llama):
    rewrite(
        llama, lambda tensors: tensors.update({n: t.bfloat16() for n, t in tensors.items() if t.dim() == 2})
    )
    folder = HFFolder(llama)
    assert folder.read("head.weight", ((0, 3), (0, 48))).dtype == torch.bfloat16
    assert folder.read("norm.weight", ((0, 48),)).dtype == torch.float32


def test_a_stored_head_that_is_the_embedding_is_no_other_tensor(saved, tmp_path):
    save("llama-biases-tied", tmp_path)
    rewrite(
        tmp_path,
        lambda tensors: tensors.update({"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}),
    )
    assert "head.weight" not in HFFolder(tmp_path).names()
    rewrite(tmp_path, lambda tensors: tensors.update({"lm_head.weight": tensors["lm_head.weight"] + 1}))
    with pytest.raises(UserError, match=r"lm_head.weight is not the embedding; set it to false"):
        HFFolder(tmp_path)


def test_a_digest_changes_with_one_bit_of_the_weights(llama, saved):
    assert HFFolder(llama).digest() == HFFolder(llama).digest()
    before = HFFolder(llama).digest()
    rewrite(llama, lambda tensors: tensors["model.norm.weight"][3].add_(1e-6))
    assert HFFolder(llama).digest() != before


def untie(folder):
    rewrite(folder, lambda tensors: tensors.pop("lm_head.weight"))


SPOILED = {
    "no config": (lambda folder: (folder / "config.json").unlink(), "config.json: cannot be read"),
    "untied without head": (untie, "says tie_word_embeddings = false, but there is no lm_head.weight"),
    "missing": (
        lambda folder: rewrite(folder, lambda tensors: tensors.pop("model.layers.1.mlp.up_proj.weight")),
        "there is no model.layers.1.mlp.up_proj.weight in its files",
    ),
    "unexpected": (
        lambda folder: rewrite(
            folder, lambda tensors: tensors.update({"model.layers.0.self_attn.q_proj.bias": torch.ones(48)})
        ),
        "self_attn.q_proj.bias in its files is not of a LlamaForCausalLM",
    ),
    "shape": (
        lambda folder: rewrite(folder, lambda tensors: tensors.update({"model.norm.weight": torch.ones(47)})),
        r"model.norm.weight has the shape \[47\], but by config.json it is \[48\]",
    ),
    "type": (
        lambda folder: rewrite(
            folder, lambda tensors: tensors.update({"model.norm.weight": torch.ones(48, dtype=torch.int8)})
        ),
        "model.norm.weight is stored as I8: quantised weights are not",
    ),
    "truncated": (
        lambda folder: os.truncate(folder / "model.safetensors", 90_000),
        "model.safetensors: is not a complete safetensors file",
    ),
    "pickles": (
        lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model.bin"),
        r"its weights are pickles \(pytorch_model.bin\)",
    ),
    "nothing": (
        lambda folder: (folder / "model.safetensors").unlink(),
        "there is neither model.safetensors nor",
    ),
    "adapter": (
        lambda folder: (folder / "config.json").rename(folder / "adapter_config.json"),
        "it is a LoRA adapter of None, not a model",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", SPOILED)
def test_a_folder_that_is_not_what_it_says_is_one_message(llama, what):
    spoil, says = SPOILED[what]
    spoil(llama)
    with pytest.raises(UserError, match=says):
        HFFolder(llama)


@pytest.mark.parametrize(
    ("file", "says"),
    [
        (
            "../model.safetensors",
            r"is in '\.\./model.safetensors', which is no safetensors file of this folder",
        ),
        ("/etc/passwd", "which is no safetensors file of this folder"),
        ("model-00009-of-00009.safetensors", "model-00009-of-00009.safetensors of the .* missing"),
        ("other", "which does not hold it"),
    ],
)
def test_an_index_that_lies_is_one_message(saved, tmp_path, file, says):
    shutil.copytree(saved / "llama", tmp_path / "spoiled")
    index = tmp_path / "spoiled/model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"]["lm_head.weight"] = (
        content["weight_map"]["model.norm.weight"] if file == "other" else file
    )
    if file == "other":
        content["weight_map"]["model.norm.weight"] = sorted(set(content["weight_map"].values()))[0]
    index.write_text(json.dumps(content))
    with pytest.raises(UserError, match=says):
        HFFolder(tmp_path / "spoiled")


def test_one_file_with_all_is_preferred_to_an_index_as_by_transformers(saved, llama):
    shutil.copytree(saved / "llama", llama, dirs_exist_ok=True)
    rewrite(llama, lambda tensors: tensors["model.norm.weight"].fill_(2.0))
    assert HFFolder(llama).read("norm.weight", ((0, 3),)).tolist() == [2.0] * 3


def test_weights_without_their_config_are_named_as_what_they_are(saved, llama, tmp_path):
    shutil.copytree(saved / "llama", tmp_path / "several")
    for folder in (tmp_path / "several", llama):
        (folder / "config.json").unlink()
        with pytest.raises(UserError, match=r"config.json: cannot be read .*name a folder with a model"):
            open_weights(folder)


def test_a_tokenizer_of_another_model_is_refused(llama):
    with pytest.raises(UserError, match=r"there is no tokenizer.json"):
        HFFolder(llama).tokenizer()
    bytes_tokenizer("<|end|>").save(llama)
    with pytest.raises(UserError, match="has ids up to 256, but the model knows only 101 tokens"):
        HFFolder(llama).tokenizer()


def test_the_tokenizer_has_the_names_and_the_template_of_its_files(tmp_path):
    save("llama", tmp_path, vocab_size=260)
    bytes_tokenizer("<|end|>").save(tmp_path)
    (tmp_path / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")
    weights = open_weights(tmp_path)
    assert isinstance(weights, HFFolder) and is_hf_folder(tmp_path)
    tokenizer = weights.tokenizer()
    assert tokenizer.end_of_text_id == 256
    assert tokenizer.chat_template == "{{ messages[0]['content'] }}"
