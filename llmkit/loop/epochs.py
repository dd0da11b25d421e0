"""The columns of a row that tell how often the data have been seen."""

from __future__ import annotations

from llmkit.data.loader import TrainLoader


def epoch_columns(loader: TrainLoader) -> dict[str, float]:
    """`epochs` of all stored sources together, and of each where there are several; none of live ones, whose
    tokens are not counted."""
    seen = loader.seen()
    if not seen:
        return {}
    tokens, sizes = (sum(each) for each in zip(*seen.values(), strict=True))
    columns = {"epochs": tokens / sizes}
    if len(seen) > 1:
        columns |= {f"epochs/{name}": count / size for name, (count, size) in seen.items()}
    return columns
