"""Makes docs/python-api.md, the public names with signatures and docstrings, of the source: `make docs`.

It reads the source and imports nothing of it but the list of names, so that the page depends neither on the
version of Python nor on what is installed.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import llmkit

ROOT = Path(llmkit.__file__).parent
INTRODUCTION = """\
# Python API

The names that `import llmkit` gives, as their source documents them; `make docs` makes this page.
[The public names](api.md) has them in a table, with what is promised of them, and
[extending llmkit](extending.md) shows their use.
"""
ORDER = {
    "Runs and models": ("load", "Loaded", "train", "Run", "TrainedModel", "UserError"),
    "Models of your own": ("Model", "ModelContext", "Batch", "LossSum", "layers"),
    "Other parts of your own": ("register", "Section", "Optimizer", "DataSource", "Sink"),
    "Hooks": ("Hook", "Request", "Trainer", "StepResult", "Evaluation", "media"),
}
PROMISED = {
    "Trainer": (
        "config", "plan", "mesh", "state", "engine", "learning_rate", "phases", "record", "write_media",
    ),
    "media": ("table", "histogram", "image"),
}  # fmt: skip
"""What is public of a class or module of which not all is."""


def markdown() -> str:
    """The page: a section for each public name, those that are used together under one heading."""
    assert {name for names in ORDER.values() for name in names} == set(llmkit.__all__)
    parts = [INTRODUCTION]
    for heading, names in ORDER.items():
        parts.append(f"\n## {heading}\n")
        parts += [_named(name) for name in names]
    return "".join(parts)


def _named(name: str) -> str:
    """The section of a public name."""
    module, _, defined = llmkit._HOMES[name].partition(":")
    tree = _module(module)
    if not defined:
        text = f"\n### llmkit.{name}\n\n{_prose(tree)}"
        exported = PROMISED.get(name) or _list_of_names(tree)
        return text + "".join(_member(*_found(module, each), name) for each in exported)
    node, _ = _found(module, defined)
    text = f"\n### llmkit.{name}\n\n{_code(node)}{_prose(node)}"
    if isinstance(node, ast.ClassDef):
        members = [each for each in node.body if isinstance(each, ast.FunctionDef) and _is_shown(each)]
        chosen = PROMISED.get(name)
        members = [each for each in members if chosen is None or each.name in chosen]
        text += "".join(_member(each, module, name) for each in members)
    return text


def _is_shown(method: ast.FunctionDef) -> bool:
    overload = any(isinstance(each, ast.Name) and each.id == "overload" for each in method.decorator_list)
    return method.name[0] != "_" and not overload


def _member(node: ast.AST, module: str, of: str) -> str:
    """A method of a class, or what a module has."""
    assert isinstance(node, (ast.FunctionDef, ast.ClassDef))
    return f"\n#### {of}.{node.name}\n\n{_code(node)}{_prose(node)}"


def _module(name: str) -> ast.Module:
    path = ROOT.parent / name.replace(".", "/")
    return ast.parse((path.with_suffix(".py") if not path.is_dir() else path / "__init__.py").read_text())


def _found(module: str, name: str) -> tuple[ast.FunctionDef | ast.ClassDef, str]:
    """The definition of a name in a module, or where that has imported it from."""
    for node in _module(module).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and node.name == name:
            return node, module
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    return _found(node.module, alias.name)
    raise LookupError(f"{module} has no {name}")


def _list_of_names(tree: ast.Module) -> list[str]:
    """What `__all__` of a module lists."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__":
            return list(ast.literal_eval(node.value))
    raise LookupError("there is no __all__")


def _code(node: ast.FunctionDef | ast.ClassDef) -> str:
    """The signature of a function, or the fields and constructor of a class, as a block of Python."""
    return "```python\n" + "\n".join(_signature(node)) + "\n```\n\n"


def _signature(node: ast.FunctionDef | ast.ClassDef) -> Iterator[str]:
    for decorator in node.decorator_list:
        if ast.unparse(decorator) in ("property", "classmethod", "staticmethod"):
            yield f"@{ast.unparse(decorator)}"
    if isinstance(node, ast.FunctionDef):
        returns = "" if node.returns is None else f" -> {ast.unparse(node.returns)}"
        yield from _wrapped(f"def {node.name}(", _arguments(node.args), f"){returns}")
        return
    bases = [ast.unparse(base) for base in node.bases]
    yield f"class {node.name}({', '.join(bases)})" if bases else f"class {node.name}"
    for each in node.body:
        if isinstance(each, ast.AnnAssign) and not str(getattr(each.target, "id", "_")).startswith("_"):
            value = "" if each.value is None else f" = {ast.unparse(each.value)}"
            yield f"    {ast.unparse(each.target)}: {ast.unparse(each.annotation)}{value}"
        if isinstance(each, ast.FunctionDef) and each.name == "__init__" and node.name not in PROMISED:
            yield from (f"    {line}" for line in _wrapped("def __init__(", _arguments(each.args), ")"))


def _arguments(arguments: ast.arguments) -> list[str]:
    """Each argument with its type and default, without self; `*` and `/` where they stand."""
    text = ast.unparse(arguments)
    parts, depth, current = list[str](), 0, ""
    for letter in f"{text},":
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and depth == 0:
            parts.append(current.strip())
            current = ""
        else:
            current += letter
    return [part for part in parts if part and part not in ("self", "cls")]


def _wrapped(before: str, parts: list[str], behind: str) -> list[str]:
    """A definition in one line, or with a line for each argument."""
    line = f"{before}{', '.join(parts)}{behind}"
    return [line] if len(line) <= 100 else [before, *(f"    {part}," for part in parts), behind]


def _names(node: ast.Module | ast.FunctionDef | ast.ClassDef) -> set[str]:
    """The arguments of a function, or the fields and arguments of a class, which docstrings explain."""
    if isinstance(node, ast.FunctionDef):
        every = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        return {each.arg for each in every}
    names = set[str]()
    for each in node.body if isinstance(node, ast.ClassDef) else ():
        if isinstance(each, ast.AnnAssign) and isinstance(each.target, ast.Name):
            names.add(each.target.id)
        elif isinstance(each, ast.FunctionDef):
            names |= _names(each) if each.name == "__init__" else {each.name}
        elif isinstance(each, ast.Assign):
            names |= {target.id for target in each.targets if isinstance(target, ast.Name)}
    return names


def _prose(node: ast.Module | ast.FunctionDef | ast.ClassDef) -> str:
    """A docstring as Markdown: its paragraphs, and a list where it explains arguments, `name: ...`."""
    name = rf"(?:{'|'.join(sorted(_names(node)) or ['(?!)'])})"
    promised = set(PROMISED.get(getattr(node, "name", ""), _names(node)))
    begin = re.compile(rf"(?:^|(?<=[.:;)] ))(?=(?:{name}(?:, {name})*: |Raises |Returns ))")
    paragraphs = list[str]()
    for paragraph in (ast.get_docstring(node) or "").split("\n\n"):
        text = " ".join(paragraph.split()).replace("<", "&lt;")
        listed = False
        for part in filter(None, (each.strip() for each in begin.split(text))):
            found = re.match(rf"({name}(?:, {name})*): (.*)", part)
            if found and not set(found[1].split(", ")) <= promised:
                continue
            if found:
                paragraphs.append(f"- `{found[1]}`: {found[2]}")
                if listed:
                    paragraphs[-2:] = ["\n".join(paragraphs[-2:])]
            else:
                paragraphs.append(part)
            listed = bool(found)
    return "\n\n".join(paragraphs) + "\n"


if __name__ == "__main__":
    sys.stdout.write(markdown())
