"""A configuration with reasons reads back as the values alone."""

from __future__ import annotations

from llmkit.config.mistakes import Mistake
from llmkit.config.yaml_reader import read_file
from llmkit.recipes.document import amount, plain, to_text
from llmkit.recipes.recipe import Setting

SECTIONS = {
    "run": {"name": Setting("a-run")},
    "empty": {},
    "data": {
        "sources": Setting([{"type": "text", "path": 'odd "name" # [*].txt'}], "all there is"),
        "tokenizer": Setting({"type": Setting("bpe"), "vocab_size": Setting(1024, "few")}),
    },
    "optimizer": {
        "learning_rate": Setting(8e-3, "a reason that is so long that it cannot stand on one line " * 4),
        "betas": Setting([0.9, 0.95]),
        "groups": Setting(
            [
                {
                    "params": Setting(["embedding.weight", "head.*"], "two"),
                    "learning_rate": Setting(1e-05, "slow"),
                },
                {"params": Setting(["*.norm.weight"])},
            ],
            "by name",
        ),
    },
}


def test_text_reads_back_as_the_values(tmp_path):
    path, mistakes = tmp_path / "a.yaml", list[Mistake]()
    path.write_text(to_text(SECTIONS, "A heading.\n\nIn two parts."))
    tree = read_file(path, str(path), mistakes)
    assert not mistakes and tree is not None
    assert tree.plain() == plain(SECTIONS)
    assert "empty" not in tree.plain()


def test_lines_are_short_and_every_reason_stands_in_them():
    text = to_text(SECTIONS, "word " * 60)
    assert max(map(len, text.splitlines())) <= 110
    for reason in ("all there is", "few", "two", "slow", "by name"):
        assert f"# {reason}\n" in text


def test_amounts_have_three_digits_and_a_unit():
    values = (950, 69_950, 5.36e6, 97.54e6, 999.9e6, 1.17e9, 11.89e9, 2e13)
    assert [amount(value) for value in values] == [
        "950", "70k", "5.36M", "97.5M", "1B", "1.17B", "11.9B", "20T",
    ]  # fmt: skip
