from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from llmkit.extras import missing_extra, missing_package

ROOT = Path(__file__).parents[1]
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
ASKED = sorted(
    {
        (extra, *re.findall(r'"(\w+)"', modules))
        for path in (ROOT / "llmkit").rglob("*.py")
        for extra, modules in re.findall(r'missing_extra\(\s*"(\w+)",([^)]*)\)', path.read_text())
    }
)


def test_what_is_installed_is_not_missing_and_the_rest_is_named():
    assert missing_extra("hf", "json", "re") is None
    assert missing_extra("hf", "json", "no_such_a") == "no_such_a is not installed (pip install 'llmkit[hf]')"
    both = missing_extra("serve", "no_such_a", "no_such_b")
    assert both == "no_such_a and no_such_b are not installed (pip install 'llmkit[serve]')"


@pytest.mark.parametrize("extra, modules", [(extra, modules) for extra, *modules in ASKED])
def test_an_extra_installs_what_is_asked_for(extra, modules):
    packages = {re.match(r"[\w-]+", each)[0].replace("-", "_") for each in EXTRAS[extra]}
    assert modules and packages >= set(modules)


def test_a_package_without_an_extra_is_named():
    assert missing_package("json") is None
    assert missing_package("no_such_a") == "no_such_a is not installed (pip install no_such_a)"


def test_development_installs_every_extra_with_python_alone():
    wanted = {
        re.match(r"[\w-]+", each)[0]
        for extra in ("eval", "hf", "quantize", "serve", "s3", "tensorboard")
        for each in EXTRAS[extra]
    }
    assert {re.match(r"[\w-]+", each)[0] for each in EXTRAS["dev"]} >= wanted
    assert {extra for extra, *_ in ASKED} == {"eval", "hf", "quantize", "serve"}
