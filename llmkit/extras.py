"""Optional packages: the extras of pyproject.toml."""

from __future__ import annotations

import importlib.util


def missing_extra(extra: str, *modules: str) -> str | None:
    """Which of the modules are not installed, and how to install them; None where all are.

    extra: of pyproject.toml, which must name their packages.
    """
    absent = [module for module in modules if importlib.util.find_spec(module) is None]
    if not absent:
        return None
    verb = "is" if len(absent) == 1 else "are"
    return f"{' and '.join(absent)} {verb} not installed (pip install 'llmkit[{extra}]')"


def missing_package(package: str) -> str | None:
    """That a package which no extra names is not installed, and how to install it; None where it is."""
    if importlib.util.find_spec(package) is not None:
        return None
    return f"{package} is not installed (pip install {package})"
