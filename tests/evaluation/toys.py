"""A model of ours and the same of transformers, with a tokenizer and tasks of lm-eval in local files."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
import yaml
from tokenizers import AddedToken, decoders, models, pre_tokenizers, processors, trainers
from tokenizers import Tokenizer as Encoder

from llmkit.config.shape import ModelShape
from llmkit.data.tokens.chat import CHATML
from llmkit.data.tokens.tokenizer import Tokenizer
from llmkit.data.tokens.tokenizer_json import byte_symbols
from llmkit.model.gpt import GPT
from tests.program import SENTENCE
from tests.shapes import LLAMA_STYLE, random_model

BOS, END, CHAT = "<s>", "</s>", ("<|im_start|>", "<|im_end|>")
WORDS = SENTENCE.split()
CONTEXT = 88
NAMES = ("toy_choice", "toy_rolling", "toy_last_word", "toy_answer")


def sentence(draw: random.Random, words: int) -> str:
    return " ".join(draw.choice(WORDS) for _ in range(words))


def distinct(draw: random.Random) -> list[str]:
    return draw.sample(sorted(set(WORDS)), 3)


@cache
def tokenizer(puts_bos: bool = True) -> Tokenizer:
    """Byte-level BPE. puts_bos: transformers puts bos before every text, as Llama's tokenizer does."""
    encoder = Encoder(models.BPE())
    encoder.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    encoder.decoder = decoders.ByteLevel()
    special = [AddedToken(token, special=True, normalized=False) for token in (BOS, END, *CHAT)]
    trainer = trainers.BpeTrainer(
        vocab_size=301, special_tokens=special, initial_alphabet=byte_symbols(), show_progress=False
    )
    encoder.train_from_iterator([sentence(random.Random(0), 300)], trainer)
    if puts_bos:
        first = encoder.token_to_id(BOS)
        encoder.post_processor = processors.TemplateProcessing(
            single=f"{BOS} $A", special_tokens=[(BOS, first)]
        )
    named = {"bos_token": BOS, "eos_token": END}
    made = Tokenizer(encoder.to_str(), END, chat_template=CHATML, named_tokens=named)
    return made.open_as_published()


@cache
def shape() -> ModelShape:
    size = tokenizer().vocab_size
    return replace(LLAMA_STYLE, vocab_size=size, padded_vocab_size=size + 3, max_position_embeddings=CONTEXT)


def model() -> GPT:
    """Ours, with random values in every part."""
    return random_model(shape()).eval()


def hugging_face(ours: GPT) -> Any:
    """transformers' Llama with the weights of ours."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from tests.model.test_gpt import from_llama

    s = ours.shape
    config = LlamaConfig(
        vocab_size=s.vocab_size, hidden_size=s.hidden_size, intermediate_size=s.intermediate_size,
        num_hidden_layers=s.num_hidden_layers, num_attention_heads=s.num_attention_heads,
        num_key_value_heads=s.num_key_value_heads, head_dim=s.head_dim, rms_norm_eps=s.norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": s.rope_theta}, tie_word_embeddings=False,
        max_position_embeddings=CONTEXT, attn_implementation="eager", bos_token_id=None,
        eos_token_id=tokenizer().end_of_text_id,
    )  # fmt: skip
    theirs = LlamaForCausalLM(config).float().eval()
    state, own = theirs.state_dict(), dict(ours.named_parameters())
    with torch.no_grad():
        for name, parts in ours.parameter_slices().items():
            for part in parts:
                from_llama(state, part.name).copy_(own[name][part.start : part.stop])
    return theirs


def make_tasks(folder: Path, answer_tokens: int = 12) -> Path:
    """Tasks of four kinds: questions with answers to choose from, texts, last words, answers to write."""
    folder.mkdir()
    draw = random.Random(1)
    choices = [
        {
            "question": sentence(draw, draw.choice([3, 9, 60])),
            # Distinct: of two equal ones, the rounding of sums would choose.
            "choices": [word + draw.choice(["", f" {sentence(draw, 3)}"]) for word in distinct(draw)],
            "gold": draw.randrange(3),
        }
        for _ in range(13)
    ]
    texts = [{"text": sentence(draw, words)} for words in (1, 7, 30, 90)]
    texts.append({"text": "naïve 日本 😀"})
    last = [{"text": sentence(draw, 6), "last": draw.choice(WORDS)} for _ in range(5)]
    last.append({"text": "", "last": "é日本"})
    write_task(
        folder, "toy_choice", choices, output_type="multiple_choice",
        doc_to_text="Question: {{question}}\nAnswer:", doc_to_choice="{{choices}}", doc_to_target="gold",
        num_fewshot=1, fewshot_split="test",
        metric_list=[{"metric": "acc"}, {"metric": "acc_norm"}],
    )  # fmt: skip
    write_task(
        folder, "toy_rolling", texts, output_type="loglikelihood_rolling",
        doc_to_text="", doc_to_target="{{text}}",
        metric_list=[{"metric": "word_perplexity"}, {"metric": "bits_per_byte"}],
    )  # fmt: skip
    write_task(
        folder, "toy_last_word", last, output_type="loglikelihood", doc_to_text="{{text}}",
        doc_to_target="{{' ' + last}}", metric_list=[{"metric": "perplexity"}, {"metric": "acc"}],
    )  # fmt: skip
    asked = [{"text": sentence(draw, draw.choice([2, 5, 50])), "answer": "a"} for _ in range(7)]
    write_task(
        folder, "toy_answer", asked, output_type="generate_until", doc_to_text="{{text}}",
        doc_to_target="{{answer}}", metric_list=[{"metric": "exact_match"}],
        generation_kwargs={"until": ["e", "\n\n"], "max_gen_toks": answer_tokens},
    )  # fmt: skip
    return folder


def write_task(folder: Path, name: str, rows: list[dict[str, Any]], **settings: Any) -> None:
    """A task whose questions lie beside it."""
    data = folder / f"{name}.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = {"data_files": {"test": str(data)}, "cache_dir": str(folder / "cache")}
    task = {
        "task": name, "dataset_path": "json", "test_split": "test", "dataset_kwargs": files,
        "metadata": {"version": 1.0}, **settings,
    }  # fmt: skip
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(task))


def answers(results: dict[str, Any]) -> dict[str, list[Any]]:
    """What the model answered to every question of every task."""
    return {
        task: [sample["resps"] for sample in sorted(samples, key=lambda each: each["doc_id"])]
        for task, samples in results["samples"].items()
    }


def by_lm_eval(
    folder: Path, names: tuple[str, ...], model: Any, tokens: Any = None, limit: int | None = None
) -> dict[str, Any]:
    """What lm-eval's own adapter finds for a model of transformers, or for the folder of one."""
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    theirs = HFLM(model, tokenizer=tokens, batch_size=3, device="cpu", dtype="float32")
    found = lm_eval.simple_evaluate(
        theirs, tasks=list(names), bootstrap_iters=0, log_samples=True, limit=limit,
        task_manager=TaskManager(include_path=str(folder), include_defaults=False),
    )  # fmt: skip
    assert found is not None
    return dict(found)
