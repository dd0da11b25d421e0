"""Tables, histograms and images of a run, and what of odd ones is not shown."""

from __future__ import annotations

from pathlib import Path

from llmkit.report import media
from tests.report.runs import make_run


def table(step: int, rows: object, name: object = "samples", columns: object = ("prompt", "text")) -> dict:
    return {"step": step, "kind": "table", "name": name, "columns": columns, "rows": rows}


def histogram(step: int, counts: object, edges: object, name: str = "g") -> dict:
    return {"step": step, "kind": "histogram", "name": name, "edges": edges, "counts": counts}


def test_the_newest_tables_come_first_and_samples_before_others(tmp_path: Path):
    items = [table(step, [["a", "b" * 5000], [None, 1.5]]) for step in range(5)] + [table(9, [], "other")]
    found = media.tables(make_run(tmp_path / "run", media=items))
    assert [(each.name, each.step) for each in found] == [
        ("samples", 4),
        ("samples", 3),
        ("samples", 2),
        ("other", 9),
    ]
    assert found[0].columns == ["prompt", "text"]
    assert found[0].rows == [["a", "b" * media.MOST_TEXT + "..."], ["", "1.5"]]


def test_long_tables_are_cut_and_odd_ones_left_out(tmp_path: Path):
    long = table(1, [["x", "y"]] * 60) | {"rows_left_out": 7}
    odd = [
        table(2, 3, "a"),
        table(3, [], 4),
        table(4, ["row"], "b"),
        {"kind": "table"},
        table(5, []) | {"step": "x"},
    ]
    found = media.tables(make_run(tmp_path / "run", media=[long, *odd]))
    assert [(each.name, len(each.rows), each.left_out) for each in found] == [("samples", 50, 17)]


def test_histograms(tmp_path: Path):
    items = [
        histogram(1, [9, 9], [0, 1, 2]), histogram(2, [1, 4, 0], [0.001, 0.01, 0.1, 1000]),
        histogram(3, [1], [0], "short"), histogram(3, "x", [0, 1], "text"),
        histogram(3, [0], [0, 1], "empty"),
        {"step": 3, "kind": "histogram", "name": "none"},
    ]  # fmt: skip
    (found,) = media.histograms(make_run(tmp_path / "run", media=items))
    assert found == media.Histogram("g", 2, [25, 100, 0], "0.001", "1000")


def test_images_are_files_of_the_run_folder_alone(tmp_path: Path):
    run = make_run(tmp_path / "run", media=[])
    (tmp_path / "secret.png").write_bytes(b"s")
    (run.folder / "a.png").write_bytes(b"content")
    (run.folder / "link.png").symlink_to(tmp_path / "secret.png")
    (run.folder / "large.jpg").write_bytes(bytes(media.IMAGE_BYTES + 1))
    outside = ["link.png", "../secret.png", str(tmp_path / "secret.png")]
    names = ["a.png", *outside, "config.yaml", "gone.png", 3, "a\0.png", "large.jpg"]
    items = [{"step": 1, "kind": "image", "name": f"i{n}", "path": name} for n, name in enumerate(names)]
    found = media.pictures(make_run(tmp_path / "run", media=items))
    assert found[:1] == [media.Picture("i0", 1, "data:image/png;base64,Y29udGVudA==")]
    assert [each.name for each in found] == ["i0"]
