"""What the package must not do anywhere, read from its source: docs/security.md promises it."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "llmkit"
FORBIDDEN = (
    # What runs code that it reads, or follows what a file says:
    r"(pickle|cPickle|dill|cloudpickle|marshal|shelve|joblib)\.(loads?|Unpickler|open)",
    r"torch\.(load|hub\..*|jit\.load)|torch\.distributed\.checkpoint\..*|dcp\.load",
    r"(np|numpy)\.load",
    r"eval|exec|compile|__import__",
    r"yaml\.(load|load_all|full_load|unsafe_load|Loader|FullLoader|UnsafeLoader)",
    r"(tarfile|zipfile|shutil)\.(open|ZipFile|TarFile|unpack_archive)|.*\.extractall",
    # Shells:
    r"os\.(system|popen)|subprocess\.(getoutput|getstatusoutput)",
    # Messages between ranks that are pickles:
    r"(dist|torch\.distributed)\..*(object|object_list)|.*\.(send|recv|scatter|gather)_object.*",
    # Names in folders of all users that another one can take first:
    r"tempfile\.mktemp|tempfile\.tempnam",
)
"""Names that are neither called nor imported."""
ARGUMENTS = {"shell": False, "weights_only": True, "trust_remote_code": False, "allow_pickle": False}
"""Arguments that must not have another value than this."""


def names(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Dotted names that are called or imported, and their lines. What is imported under another name counts
    as itself."""
    imports = [alias for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    own = {alias.asname: alias.name for alias in imports if alias.asname}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            first, *rest = ast.unparse(node.func).split(".")
            yield ".".join([own.get(first, first), *rest]), node.lineno
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                yield f"{node.module}.{alias.name}", node.lineno


@pytest.fixture(scope="module")
def trees() -> dict[str, ast.Module]:
    return {
        path.relative_to(PACKAGE).as_posix(): ast.parse(path.read_text()) for path in PACKAGE.rglob("*.py")
    }


def test_calls_that_trust_what_they_are_given_are_nowhere(trees: dict[str, ast.Module]) -> None:
    forbidden = re.compile("|".join(f"(?:{pattern})" for pattern in FORBIDDEN))
    found = [
        f"{file}:{line}: {name}"
        for file, tree in trees.items()
        for name, line in names(tree)
        if forbidden.fullmatch(name)
    ]
    assert found == []


def test_arguments_that_lower_the_guard_are_nowhere(trees: dict[str, ast.Module]) -> None:
    found = [
        f"{file}:{node.value.lineno}: {ast.unparse(node)}"
        for file, tree in trees.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.keyword) and node.arg in ARGUMENTS
        and not (isinstance(node.value, ast.Constant) and node.value.value is ARGUMENTS[node.arg])
    ]  # fmt: skip
    assert found == []


def test_the_search_sees_what_it_looks_for() -> None:
    """On the very lines that are forbidden, each in the place of a module."""
    for line in (
        "pickle.load(f)", "from pickle import loads", "torch.load(p)", "np.load(p)", "eval(x)",
        "yaml.load(x)", "tarfile.open(p)", "t.extractall()", "os.system(c)", "dist.all_gather_object(a, b)",
        "tempfile.mktemp()", "import pickle as p; p.load(f)", "import torch as t\nt.load(f)",
        "import torch.distributed as d; d.all_gather_object(a, b)", "import pickle as p; p.Unpickler(f)",
    ):  # fmt: skip
        ((name, _),) = names(ast.parse(line))
        assert any(re.fullmatch(pattern, name) for pattern in FORBIDDEN), name
