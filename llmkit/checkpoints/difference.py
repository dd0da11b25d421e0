"""`llmkit checkpoint diff`: what is different in two checkpoints, whatever the layouts that wrote them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from llmkit.checkpoint.named import named
from llmkit.checkpoint.read import Checkpoint
from llmkit.checkpoint.read import open as open_checkpoint
from llmkit.checkpoints.slabs import slabs
from llmkit.command_line import print_json
from llmkit.config.mistakes import display
from llmkit.config.renamed import with_new_names
from llmkit.config.resume import compare
from llmkit.data.state import data_differences, read_data_state
from llmkit.watch.table import Column, draw


@dataclass(frozen=True)
class TensorDifference:
    """How much a tensor differs. relative: norm of the difference, over the larger norm of the two.

    largest: of the differences of single elements. squares: squared norms of the difference, and of the
    tensor in each. problem: why they cannot be compared, else "".
    """

    name: str
    kind: str
    relative: float = math.nan
    largest: float = math.nan
    squares: tuple[float, float, float] = (0.0, 0.0, 0.0)
    problem: str = ""

    @property
    def differs(self) -> bool:
        """Whether a bit of it matters: NaN, which equals nothing, differs too."""
        return self.problem != "" or self.largest != 0.0


def diff_command(first: Path, second: Path, count: int, *, as_json: bool) -> int:
    """Prints the differences of two checkpoints; `count` of those of tensors, the largest ones.

    Raises UserError where there is no checkpoint at a path, Damaged where one is damaged.
    """
    a, b = open_checkpoint(named(first)), open_checkpoint(named(second))
    changes = compare(with_new_names(a.config), with_new_names(b.config)).all
    settings = [change.to_json() for change in changes]
    model = _changed(a.model, b.model)
    data = data_changes(a, b)
    only = {side: [kind for kind in one.kinds() if kind not in other.kinds()]
            for side, one, other in (("A", a, b), ("B", b, a))}  # fmt: skip
    tensors = list(compare_tensors(a, b))
    shown = sorted((each for each in tensors if each.differs), key=_size, reverse=True)
    if as_json:
        found = {
            "a": _about(a), "b": _about(b), "settings": settings, "model": model, "data": data,
            "only_in": only, "kinds": _kinds(tensors), "tensors": [_to_json(each) for each in shown],
        }  # fmt: skip
        print_json(found)
        return 0
    print(f"A          {a.origin}, step {a.step}\nB          {b.origin}, step {b.step}")
    _section("settings", [f"{each['setting']}: {each['old']} -> {each['new']}" for each in settings])
    _section("model", model)
    _section("data", data)
    for kind, sums in _kinds(tensors).items():
        how_many = f"{sums['differ']} of {sums['tensors']} tensors differ"
        print(f"{kind:<10} {how_many}, by {_shown(sums['relative'])}")
    for side, kinds in only.items():
        if kinds:
            print(f"only in {side}  {', '.join(kinds)}")
    print("\n".join(_table(shown[:count])))
    if len(shown) > count:
        print(f"and {len(shown) - count} more; --count N shows more, --json all")
    return 0


def compare_tensors(a: Checkpoint, b: Checkpoint) -> Iterator[TensorDifference]:
    """All tensors of the kinds of state that two checkpoints have; a few rows are in memory at a time."""
    for kind in (kind for kind in a.kinds() if kind in b.kinds()):
        mine, theirs = (each.names(kind) for each in (a, b))
        known = set(mine) & set(theirs)
        for name in dict.fromkeys([*mine, *theirs]):
            if name not in known:
                yield TensorDifference(name, kind, problem=f"only in {'A' if name in mine else 'B'}")
            elif a.shape(name, kind) != b.shape(name, kind):
                shapes = f"{list(a.shape(name, kind))} -> {list(b.shape(name, kind))}"
                yield TensorDifference(name, kind, problem=f"shape {shapes}")
            else:
                yield _compare(a, b, name, kind)


def _compare(a: Checkpoint, b: Checkpoint, name: str, kind: str) -> TensorDifference:
    apart = norm_a = norm_b = largest = 0.0
    for _, box in slabs(a.shape(name, kind)):
        one, other = (each.read(name, kind, box).double() for each in (a, b))
        norm_a, norm_b = norm_a + float(one.square().sum()), norm_b + float(other.square().sum())
        difference = one.sub_(other)
        apart += float(difference.square().sum())
        most = float(difference.abs().max()) if difference.numel() else 0.0
        largest = most if math.isnan(most) else max(most, largest) if not math.isnan(largest) else largest
    return TensorDifference(name, kind, relative(apart, norm_a, norm_b), largest, (apart, norm_a, norm_b))


def relative(apart: float, norm_a: float, norm_b: float) -> float:
    """The relative difference by squared norms: 0 where nothing differs, at most 2."""
    return 0.0 if apart == 0.0 else math.sqrt(apart / max(norm_a, norm_b))


def data_changes(a: Checkpoint, b: Checkpoint) -> list[str]:
    """What differs in where they stand in the data, and in the data; a line each."""
    stored = [each.state.get("data") for each in (a, b)]
    if None in stored:
        return ["an import has no position in data"] if any(stored) else []
    one, other = (read_data_state(each) for each in stored if each is not None)
    lines = [f"rows read {one.rows} -> {other.rows}"] if one.rows != other.rows else []
    return lines + data_differences(one, other.fingerprint)


def _changed(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    names = dict.fromkeys([*old, *new])
    return [
        f"{name}: {display(old.get(name))} -> {display(new.get(name))}"
        for name in names
        if old.get(name) != new.get(name)
    ]


def _kinds(tensors: Sequence[TensorDifference]) -> dict[str, dict[str, Any]]:
    """Of each kind of state how many tensors there are, how many differ, and by how much all together."""
    found: dict[str, dict[str, Any]] = {}
    for kind in dict.fromkeys(each.kind for each in tensors):
        own = [each for each in tensors if each.kind == kind]
        sums = [sum(each.squares[place] for each in own) for place in range(3)]
        differ = sum(each.differs for each in own)
        found[kind] = {"tensors": len(own), "differ": differ, "relative": relative(*sums)}
    return found


def _size(difference: TensorDifference) -> float:
    """What cannot be compared counts most."""
    return math.inf if math.isnan(difference.relative) else difference.relative


def _table(shown: Sequence[TensorDifference]) -> Iterator[str]:
    columns = [
        Column("tensor", [each.name for each in shown], left=True),
        Column("kind", [each.kind for each in shown], left=True),
        Column("relative", [each.problem or _shown(each.relative) for each in shown]),
        Column("largest", ["" if each.problem else _shown(each.largest) for each in shown]),
    ]
    return draw(columns, [""] * len(shown)) if shown else iter(())


def _section(name: str, lines: Sequence[str]) -> None:
    print(f"{name:<10} " + (f"{len(lines)} differ" if lines else "the same"))
    for line in lines:
        print(f"  {line}")


def _shown(value: float) -> str:
    return "not finite" if math.isnan(value) or math.isinf(value) else f"{value:.3g}"


def _about(checkpoint: Checkpoint) -> dict[str, Any]:
    return {"path": str(checkpoint.path), "step": checkpoint.step, "versions": checkpoint.manifest.versions}


def _to_json(difference: TensorDifference) -> dict[str, Any]:
    return {name: value for name, value in asdict(difference).items() if name != "squares"}
