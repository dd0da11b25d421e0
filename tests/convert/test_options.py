"""The command lines of import and export."""

from __future__ import annotations

import pytest

from llmkit.cli import main


@pytest.mark.parametrize("size", ["5", "0GB", "1TB", "1e3MB", "GB"])
def test_a_size_that_is_none_is_one_message(size, capsys):
    with pytest.raises(SystemExit) as end:
        main(["export", "runs/tiny", "out", "--max-shard-size", size])
    assert end.value.code == 2 and f"'{size}' is no size such as 500MB or 5GB" in capsys.readouterr().err


def test_both_commands_have_their_help(capsys):
    for command, said in (("import", "HF_DIR"), ("export", "--max-shard-size")):
        with pytest.raises(SystemExit) as end:
            main([command, "--help"])
        assert end.value.code == 0 and said in capsys.readouterr().out
