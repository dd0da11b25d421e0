"""Every architecture against transformers' own class: weights that it has saved give its logits."""

from __future__ import annotations

import json

import pytest
import torch

from llmkit.hf.choose import ARCHITECTURES, read_shape
from llmkit.hf.folder import HFFolder
from llmkit.inference import load_model
from llmkit.precision import PRECISIONS
from tests.hf.models import CASES, logits, save

TOLERANCE = 1e-5


@pytest.mark.parametrize("case", CASES)
def test_the_logits_are_those_of_transformers(case, tmp_path):
    theirs = save(case, tmp_path)
    ours = load_model(HFFolder(tmp_path), torch.device("cpu"), PRECISIONS["fp32"])
    tokens = torch.randint(90, (2, 37), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        found = ours.head.logits(ours.hidden(tokens))
    wanted = logits(theirs, tokens)
    assert float((found - wanted).norm() / wanted.norm()) <= TOLERANCE


def test_every_architecture_has_its_case():
    assert {kind for kind, _ in CASES.values()} == {each.model_type for each in ARCHITECTURES}


@pytest.mark.parametrize("case", CASES)
def test_what_is_written_is_what_transformers_would_have_written(case, tmp_path):
    """The keys that matter, read again by transformers, have the values that they had."""
    theirs = save(case, tmp_path).config
    folder = HFFolder(tmp_path)
    written = folder.architecture.write(folder.model_shape)
    again = type(theirs)(**json.loads(json.dumps(written)))
    mine, wanted = again.to_dict(), theirs.to_dict()
    free = {"dtype", "transformers_version", "bos_token_id", "eos_token_id", "pad_token_id", "_name_or_path"}
    free |= {"max_window_layers", "architectures", "head_dim", "n_inner"}  # None and the width it stands for
    different = {key for key in wanted if mine.get(key) != wanted[key]} - free
    assert different == set()
    assert read_shape(written, "", folder.architecture) == folder.model_shape


def test_gpt2_says_its_context_by_both_names_that_readers_look_for(tmp_path):
    save("gpt2", tmp_path)
    folder = HFFolder(tmp_path)
    written = folder.architecture.write(folder.model_shape)
    assert written["n_ctx"] == written["n_positions"] == 64
