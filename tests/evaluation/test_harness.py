"""Tasks of lm-eval on our model against lm-eval's own adapter on transformers' model of the same weights."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lm_eval.tasks._index import TaskIndex

from llmkit.errors import UserError
from llmkit.evaluation import harness
from llmkit.evaluation.harness import Tasks, figures, run_tasks
from llmkit.evaluation.hub_text import HubText
from llmkit.evaluation.score import Scorer
from llmkit.evaluation.team import Lead
from llmkit.parallel.mesh import Mesh
from tests.evaluation import toys


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return toys.make_tasks(tmp_path_factory.mktemp("evaluation") / "tasks")


def ours(tasks: Tasks) -> dict[str, Any]:
    scorer = Scorer.of_model(toys.model(), HubText(toys.tokenizer()), Mesh(), tokens=400)
    return run_tasks(tasks, Lead(scorer), {"name": "toy"}, quiet=True)


def without_lm_evals(build: Any) -> Any:
    """lm-eval's index of tasks without its own 14,000 files, which take half a minute to read."""
    return staticmethod(lambda folders: build([path for path in folders if "lm_eval" not in path.parts]))


def log_likelihoods(answer: Any) -> torch.Tensor:
    """Of the answers to one question: pairs with is_greedy, or numbers alone."""
    parts = [each[0] for each in answer]
    return torch.tensor([part[0] if isinstance(part, list | tuple) else part for part in parts])


def test_figures_equal_those_of_lm_evals_own_adapter(folder, tmp_path):
    from transformers import AutoTokenizer

    toys.tokenizer().save(tmp_path)
    tokens = AutoTokenizer.from_pretrained(tmp_path)
    wanted = toys.by_lm_eval(folder, toys.NAMES, toys.hugging_face(toys.model()), tokens)
    found = ours(Tasks(toys.NAMES, str(folder), samples=True))
    assert found["model"] == {"name": "toy"} and found["versions"] == wanted["versions"]
    known = figures(wanted)
    assert {"toy_choice/acc", "toy_choice/acc_norm", "toy_rolling/bits_per_byte"} < set(known)
    assert figures(found) == pytest.approx(known, rel=1e-5)
    for name in ("toy_choice/acc", "toy_choice/acc_norm", "toy_last_word/acc"):
        assert figures(found)[name] == known[name]
    written = [toys.answers(each)["toy_answer"] for each in (found, wanted)]
    assert written[0] == written[1] and len({str(each) for each in written[0]}) > 3
    for task in toys.NAMES[:3]:
        for one, other in zip(toys.answers(found)[task], toys.answers(wanted)[task], strict=True):
            torch.testing.assert_close(log_likelihoods(one), log_likelihoods(other), rtol=1e-5, atol=1e-4)


def test_what_is_asked_for_holds_and_random_states_are_kept(folder):
    torch.manual_seed(5), random.seed(5), np.random.seed(5)
    wanted = [torch.rand(3).tolist(), random.random(), np.random.rand()]
    torch.manual_seed(5), random.seed(5), np.random.seed(5)
    found = ours(Tasks(("toy_cho*",), str(folder), num_fewshot=2, limit=4, samples=True, bootstrap=10))
    assert [torch.rand(3).tolist(), random.random(), np.random.rand()] == wanted
    asked = found["samples"]["toy_choice"]
    assert len(asked) == 4 and found["n-shot"] == {"toy_choice": 2} and found["limit"] == 4
    assert asked[0]["arguments"][0][0].count("Question:") == 3
    assert found["results"]["toy_choice"]["acc_stderr,none"] > 0
    assert set(figures(found)) == {"toy_choice/acc", "toy_choice/acc_norm"}


def test_chats_are_written_by_the_template(folder):
    asked = {"apply_chat_template": True, "system": "Be right."}
    tasks = Tasks(("toy_choice",), str(folder), limit=1, samples=True, **asked)
    question = ours(tasks)["samples"]["toy_choice"][0]["arguments"][0][0]
    assert question.startswith("<|im_start|>system\nBe right.<|im_end|>\n<|im_start|>user\nQuestion: ")
    assert question.count("<|im_start|>assistant\n") == 2 and question.endswith("<|im_start|>assistant\n")


def test_a_task_that_is_not_there_is_named_with_what_was_meant(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(TaskIndex, "build", without_lm_evals(TaskIndex.build))
    with pytest.raises(UserError, match="there is no task 'toy_choise', did you mean toy_choice"):
        ours(Tasks(("toy_choise",), str(folder)))
    with pytest.raises(UserError, match="there is no such folder"):
        ours(Tasks(("toy_choice",), str(folder / "none")))
    (tmp_path / "broken.yaml").write_text("task: [")
    with pytest.raises(UserError, match=r"no task 'mine'.*broken.yaml cannot be read"):
        ours(Tasks(("mine",), str(tmp_path)))


def test_data_that_cannot_be_had_are_one_message(folder, tmp_path, monkeypatch):
    toys.write_task(tmp_path, "lost", [], output_type="loglikelihood", doc_to_text="", doc_to_target="")
    (tmp_path / "lost.jsonl").unlink()
    with pytest.raises(UserError, match=r"the task lost cannot be loaded \(FileNotF.*mend its files"):
        ours(Tasks(("lost",), str(tmp_path)))
    (tmp_path / "far.yaml").write_text("task: far\ndataset_path: somebody/something\ntest_split: test\n")
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"the task far cannot be loaded .*Hugging Face hub.*--include-path"):
        ours(Tasks(("far",), str(tmp_path)))


def test_without_lm_eval_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr("llmkit.extras.importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"lm_eval is not installed.*pip install 'llmkit\[eval\]'"):
        harness.check_installed()
