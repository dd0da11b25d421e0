"""DeepSpeed as installed has what we use of it; a version that lacks something is named, with all of it."""

from __future__ import annotations

import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.specifiers import SpecifierSet

from llmkit.engine import deepspeed
from llmkit.engine.deepspeed import EXTENSIONS, PRIVATE, SUPPORTED, import_deepspeed, missing_names
from llmkit.errors import UserError


def test_the_installed_version_has_every_name():
    import_deepspeed()
    assert missing_names({**PRIVATE, **EXTENSIONS}) == []
    assert metadata.version("deepspeed") in SpecifierSet(SUPPORTED)


def test_the_package_asks_for_the_versions_that_were_looked_through():
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert f"deepspeed{SUPPORTED}" in project["dependencies"]


@pytest.mark.parametrize("where", PRIVATE)
def test_a_name_that_is_nowhere_in_a_class_is_missed(where):
    import_deepspeed()
    (missing,) = missing_names({where: (*PRIVATE[where], "never_there")})
    assert missing == f"{where.partition(':')[2]}.never_there"


def test_a_module_or_a_class_that_has_gone_is_missed():
    import_deepspeed()
    gone = {"deepspeed.gone:Class": ("a",), "deepspeed.runtime.engine:Gone": ("a",)}
    assert missing_names(gone) == ["deepspeed.gone.Class", "deepspeed.runtime.engine.Gone"]


def test_one_message_names_the_version_and_all_that_it_lacks(monkeypatch):
    stage3 = "deepspeed.runtime.zero.stage3:DeepSpeedZeroOptimizer_Stage3"
    changed = {**PRIVATE, stage3: ("positions", "overflow"), "deepspeed.runtime.engine:Motor": ("step",)}
    monkeypatch.setattr(deepspeed, "PRIVATE", changed)
    deepspeed._check_names.cache_clear()
    try:
        with pytest.raises(UserError) as refused:
            import_deepspeed()
    finally:
        deepspeed._check_names.cache_clear()
    assert str(refused.value) == (
        f"deepspeed {metadata.version('deepspeed')} does not have what llmkit uses of it: "
        "DeepSpeedZeroOptimizer_Stage3.positions, deepspeed.runtime.engine.Motor; "
        f'install a version that it knows: pip install "deepspeed{SUPPORTED}"'
    )
