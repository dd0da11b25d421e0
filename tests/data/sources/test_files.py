from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.registry import _registry as drivers

from llmkit.config.schema import Source
from llmkit.data.sources import files as listing
from llmkit.data.sources import retries
from llmkit.data.sources.byte_reader import ByteReader
from llmkit.data.sources.files import File, list_files
from llmkit.data.sources.remote import FileStat
from llmkit.errors import RunFault, UserError


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name in ("b.txt", "a.txt", "sub/c.txt", "sub/d.jsonl", ".hidden/e.txt", "sub/.f.txt", "x[1].txt"):
        path = tmp_path / "tree" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    return tmp_path / "tree"


@pytest.fixture
def memory() -> Iterator[Any]:
    """fsspec's store in memory."""
    store = fsspec.filesystem("memory")
    for name in ("b.jsonl", "a.jsonl.zst", "sub/c.jsonl", ".hidden/d.jsonl", "sub/.e.jsonl", "f.txt"):
        store.pipe(f"/toy/{name}", name.encode())
    yield store
    store.rm("/toy", recursive=True)


def names(root: Path, source: Source) -> list[str]:
    return [Path(file.path).relative_to(root).as_posix() for file in list_files(source, "data.sources.0")]


def test_a_folder_stands_for_all_files_under_it_but_hidden_ones(tree: Path) -> None:
    source = Source(type="text", path=str(tree))
    assert names(tree, source) == ["a.txt", "b.txt", "sub/c.txt", "sub/d.jsonl", "x[1].txt"]


def test_links_to_folders_are_followed_and_lead_nowhere_twice(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere" / "deep").mkdir(parents=True)
    (tmp_path / "elsewhere" / "deep" / "g.txt").write_text("g")
    (tree / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "round").symlink_to(tree)  # a circle
    (tree / "sub" / "self").symlink_to(".")
    (tree / "again").symlink_to(tree / "sub")
    (tree / ".dot").symlink_to(tmp_path / "elsewhere")
    expected = ["a.txt", "again/c.txt", "again/d.jsonl", "b.txt", "link/deep/g.txt", "x[1].txt"]
    assert names(tree, Source(type="text", path=str(tree))) == expected
    assert names(tree, Source(type="text", path=f"{tree}/link")) == [
        "link/deep/g.txt",
        *(f"link/round/{name}" for name in expected if not name.startswith("link")),
    ]


def test_only_files_are_taken_from_a_folder(tree: Path) -> None:
    before = names(tree, Source(type="text", path=str(tree)))
    (tree / "device.txt").symlink_to(os.devnull)
    (tree.parent / "other").write_text("other")
    (tree / "link.txt").symlink_to("../other")
    assert names(tree, Source(type="text", path=str(tree))) == sorted([*before, "link.txt"])
    with pytest.raises(UserError, match=r"device.txt: is a pipe, a socket or a device, not a file"):
        list_files(Source(type="text", path=f"{tree}/*.txt"), "p")


def test_a_file_with_several_names_is_read_once(tree: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside.txt"
    outside.write_text("outside")
    for link, target in {"0.txt": "a.txt", "y.txt": str(outside), "z.txt": str(outside)}.items():
        (tree / link).symlink_to(target)
    source = Source(type="text", path=str(tree / "*.txt"))
    assert names(tree, source) == ["a.txt", "b.txt", "x[1].txt", "y.txt"]


def test_a_link_that_leads_nowhere_is_told(tree: Path) -> None:
    (tree / "link.txt").symlink_to(tree / "gone.txt")
    with pytest.raises(UserError, match=r"link.txt: cannot be read \(No such file"):
        list_files(Source(type="text", path=str(tree)), "p")


def test_a_folder_of_records_stands_for_the_files_of_its_kind(tree: Path) -> None:
    for name in ("p.parquet", "q.arrow", "r.jsonl.gz", "s.jsonl.zst"):
        (tree / name).write_text("")
    assert names(tree, Source(type="jsonl", path=str(tree))) == ["r.jsonl.gz", "s.jsonl.zst", "sub/d.jsonl"]
    assert names(tree, Source(type="parquet", path=str(tree))) == ["p.parquet"]
    assert names(tree, Source(type="arrow", path=str(tree))) == ["q.arrow"]


def test_patterns_files_and_folders_mix_and_repeats_count_once(tree: Path) -> None:
    source = Source(type="text", path=[f"{tree}/*.txt", f"{tree}/sub", f"{tree}/sub/c.txt", f"{tree}/b.txt"])
    assert names(tree, source) == ["a.txt", "b.txt", "sub/c.txt", "sub/d.jsonl", "x[1].txt"]


def test_two_stars_go_down_into_folders(tree: Path) -> None:
    assert "sub/c.txt" in names(tree, Source(type="text", path=f"{tree}/**/*.txt"))


def test_a_name_that_looks_like_a_pattern_is_taken_as_it_is_where_it_exists(tree: Path) -> None:
    assert names(tree, Source(type="text", path=f"{tree}/x[1].txt")) == ["x[1].txt"]


def test_relative_paths_start_from_the_working_directory(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tree)
    assert names(tree, Source(type="text", path="sub/c.txt")) == ["sub/c.txt"]
    assert names(tree, Source(type="text", path=f"file://{tree}/sub/c.txt")) == ["sub/c.txt"]


@pytest.mark.parametrize(
    ("path", "kind", "message"),
    [
        ("gone.txt", "text", r"data.sources.0.path: there is no gone.txt \(looked from "),
        ("gone/*.txt", "text", r"data.sources.0.path: nothing matches gone/\*.txt"),
        ("empty", "text", r"data.sources.0.path: empty holds no files"),
        ("empty", "parquet", r"data.sources.0.path: empty holds no \*.parquet files"),
        ("empty", "jsonl", r"empty holds no \*.jsonl or \*.jsonl.gz or \*.jsonl.zst files"),
    ],
)
def test_where_nothing_is_found_the_setting_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, kind: Any, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=message):
        list_files(Source(type=kind, path=path), "data.sources.0")


def test_a_path_is_needed() -> None:
    with pytest.raises(UserError, match=r"data.sources.3.path: a jsonl source needs a file"):
        list_files(Source(type="jsonl"), "data.sources.3")


def test_compressions_that_are_not_unpacked_are_refused(write: Callable[[str, bytes], str]) -> None:
    with pytest.raises(UserError, match=r"a.jsonl.xz: .xz is not unpacked; compress it as .zst or .gz"):
        list_files(Source(type="jsonl", path=write("a.jsonl.xz", b"x")), "p")


def test_text_holds_no_other_records_than_texts(write: Callable[[str, bytes], str]) -> None:
    with pytest.raises(UserError, match=r"a.txt: is text, which holds no records of the kind chat"):
        list_files(Source(type="text", path=write("a.txt", b"x"), record="chat"), "p")


def test_the_standard_library_comes_without_tests_and_packages() -> None:
    files = [Path(file.path) for file in list_files(Source(type="stdlib"), "data.sources.0")]
    assert Path(os.__file__) in files
    assert files == sorted(files, key=str)
    folders = {part for path in files for part in path.relative_to(Path(os.__file__).parent).parts[:-1]}
    assert not folders & {"site-packages", "test", "tests", "idlelib", "__pycache__"}


def test_a_file_is_known_by_its_size_and_both_ends(write: Callable[[str, bytes], str]) -> None:
    def known(content: bytes) -> tuple[int, str]:
        (file,) = list_files(Source(type="text", path=write("a", content)), "p")
        assert file.stamp == os.stat(file.path).st_mtime_ns
        assert json.loads(json.dumps(file)) == list(file)
        return file.size, file.tag

    content = bytes(10_000)
    assert known(content) == known(content)
    changed = [content + b"\0", b"\1" + content[1:], content[:-1] + b"\1", b"", b"short"]
    assert len({known(content), *map(known, changed)}) == 6


def test_a_store_elsewhere_is_listed_like_a_folder(memory: Any) -> None:
    def found(path: str) -> list[str]:
        return [file.path for file in list_files(Source(type="jsonl", path=path), "p")]

    everything = [f"memory:///toy/{name}" for name in ("a.jsonl.zst", "b.jsonl", "sub/c.jsonl")]
    assert found("memory://toy") == everything
    assert found("memory://toy/*.jsonl") == [everything[1]]
    assert found("memory://toy/**/*.jsonl") == everything[1:]
    assert found("memory://toy/.hidden/*.jsonl") == ["memory:///toy/.hidden/d.jsonl"]
    assert found("memory://toy/f.txt") == ["memory:///toy/f.txt"]
    with pytest.raises(UserError, match=r"p.path: memory://gone holds no \*.jsonl"):
        found("memory://gone")


def test_a_file_of_a_web_server_is_known_by_its_tag(web: Any) -> None:
    web.files["/d/a.jsonl"] = b"12345"
    web.files["/empty.jsonl"] = b""
    path = f"{web.url}/d/a.jsonl?token=secret"
    assert list_files(Source(type="jsonl", path=path), "p") == [File(path, 5, '"one"', 0)]
    assert list_files(Source(type="jsonl", path=f"{web.url}/empty.jsonl"), "p")[0].size == 0
    web.serves_ranges = False  # as some servers do for empty files
    assert list_files(Source(type="jsonl", path=f"{web.url}/empty.jsonl"), "p")[0].size == 0


def test_a_web_server_may_tell_the_size_of_a_file_without_a_range_only(web: Any) -> None:
    web.files["/a.jsonl"], web.tells_size = b"12345", False
    (file,) = list_files(Source(type="jsonl", path=f"{web.url}/a.jsonl"), "p")
    assert file == File(f"{web.url}/a.jsonl", 5, '"one"', 0)
    with ByteReader(file) as reader:
        assert reader.read_at(1, 9) == b"2345"
    web.tag = '"two"'
    with ByteReader(file) as reader, pytest.raises(RunFault, match="the file changed"):
        reader.read_at(1, 9)


def test_a_web_server_that_never_tells_the_size_is_named(web: Any) -> None:
    web.files["/a.jsonl"], web.tells_size, web.serves_heads = b"12345", False, False
    with pytest.raises((UserError, RunFault), match=r"size \(HTTP 405 to HEAD\); download the file"):
        list_files(Source(type="jsonl", path=f"{web.url}/a.jsonl"), "p")


def test_a_proxy_is_heeded(web: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", web.url)
    web.files["http://nowhere.invalid/a.jsonl"] = b"12345"
    assert list_files(Source(type="jsonl", path="http://nowhere.invalid/a.jsonl"), "p")[0].size == 5


def test_a_web_server_that_turns_away_is_asked_again(web: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retries.time, "sleep", lambda seconds: None)
    web.files["/a.jsonl"] = b"12345"
    web.trouble = lambda number, start, end: 503 if number < 3 else None
    assert list_files(Source(type="jsonl", path=f"{web.url}/a.jsonl"), "p")[0].size == 5
    web.trouble = lambda number, start, end: 503
    with pytest.raises(UserError, match=r"/a.jsonl: cannot be read \(HTTP 503"):
        list_files(Source(type="jsonl", path=f"{web.url}/a.jsonl"), "p")


def test_messages_about_urls_hold_no_secrets(web: Any) -> None:
    url = web.url.replace("//", "//user:password@")
    with pytest.raises(UserError, match=r"/gone.jsonl: cannot be read \(HTTP 404") as failure:
        list_files(Source(type="jsonl", path=f"{url}/gone.jsonl?token=secret"), "p")
    assert not any(word in str(failure.value) for word in ("user", "password", "token", "secret"))


def test_a_server_without_ranges_is_refused(web: Any) -> None:
    web.files["/a.jsonl"] = b"12345"
    web.serves_ranges = False
    with pytest.raises(UserError, match=r"/a.jsonl: .*does not serve parts of files .*download the file"):
        list_files(Source(type="jsonl", path=f"{web.url}/a.jsonl"), "p")


def test_a_server_that_is_not_there_is_told(web: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retries.time, "sleep", lambda seconds: None)
    with pytest.raises(UserError, match=r"http://127.0.0.1:1/a.jsonl: cannot be read \(ClientConnectorError"):
        list_files(Source(type="jsonl", path="http://127.0.0.1:1/a.jsonl"), "p")


@pytest.mark.parametrize(
    ("url", "module"),
    [("s3://b/a.jsonl", "s3fs"), ("gs://b/a.jsonl", "gcsfs"), ("https://h/a.jsonl", "aiohttp")],
)
def test_a_missing_driver_is_named_with_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch, url: str, module: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)  # as if it were not installed
    monkeypatch.delitem(drivers, url.partition(":")[0], raising=False)
    with pytest.raises(UserError, match=f"a.jsonl: .* needs one more package: pip install {module}"):
        list_files(Source(type="jsonl", path=url), "p")


def test_an_unknown_kind_of_url_is_refused() -> None:
    with pytest.raises(UserError, match=r"nosuch://b/a.jsonl: cannot be opened .*nosuch"):
        list_files(Source(type="jsonl", path="nosuch://b/a.jsonl"), "p")


@pytest.mark.parametrize("path", ["https://[bad/x.jsonl", "s3://[bad/x", "https://[bad/*.jsonl"])
def test_a_broken_url_is_refused(path: str) -> None:
    with pytest.raises(UserError) as failure:
        list_files(Source(type="jsonl", path=path), "p")
    assert str(failure.value) == f"{path}: is no valid URL: no host can be read in it"


@pytest.fixture
def dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder laid out like a dataset of the hub, with two configurations."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    root = tmp_path / "dataset"
    (root / "data").mkdir(parents=True)
    for name in ("train-00001", "train-00000", "test-00000", "other"):
        pq.write_table(pa.table({"text": [name]}), root / "data" / f"{name}.parquet")
    (root / "README.md").write_text(
        "---\nconfigs:\n"
        "- config_name: default\n  data_files:\n  - split: train\n    path: data/train-*\n"
        "  - split: test\n    path: data/test-*\n"
        "- config_name: other\n  data_files:\n  - split: train\n    path: data/other.parquet\n---\n"
    )
    return root


def test_a_dataset_stands_for_the_files_of_its_split(dataset: Path) -> None:
    def found(**fields: Any) -> list[str]:
        files = list_files(Source(type="hub", dataset=str(dataset), **fields), "p")
        return [Path(file.path).name for file in files]

    assert found() == ["train-00000.parquet", "train-00001.parquet"]
    assert found(split="test") == ["test-00000.parquet"]
    assert found(subset="other") == ["other.parquet"]
    with pytest.raises(UserError, match=r"p.split: .*dataset has no split 'validation'; it has train, test"):
        found(split="validation")
    with pytest.raises(UserError, match=r"p.dataset: .*dataset \(gone\) cannot be opened .*gone.*not found"):
        found(subset="gone")


@pytest.mark.parametrize("way", ["absolute", "..", "link"])
def test_a_dataset_may_not_name_files_outside_it(tmp_path: Path, dataset: Path, way: str) -> None:
    outside = tmp_path / "outside.parquet"
    pq.write_table(pa.table({"text": ["x"]}), outside)
    (dataset / "link.parquet").symlink_to(outside)
    path = {"absolute": outside, "..": "../outside.parquet", "link": "link.parquet"}[way]
    card = f"---\nconfigs:\n- config_name: default\n  data_files:\n  - split: train\n    path: {path}\n---\n"
    (dataset / "README.md").write_text(card)
    with pytest.raises(
        UserError, match=r"p.dataset: .*dataset names .*(outside|link).parquet, which is no file of the"
    ):
        list_files(Source(type="hub", dataset=str(dataset)), "p")


def test_a_dataset_may_lie_behind_a_link_or_in_the_hubs_cache(tmp_path: Path, dataset: Path) -> None:
    home = tmp_path / "datasets--me--toy"
    (home / "blobs").mkdir(parents=True)
    dataset.rename(home / "snapshot")
    (home / "snapshots").mkdir()
    (home / "snapshot").rename(home / "snapshots" / "abc")
    first = home / "snapshots" / "abc" / "data" / "train-00000.parquet"
    first.rename(home / "blobs" / "123")
    first.symlink_to("../../../blobs/123")
    (tmp_path / "here").symlink_to(home / "snapshots" / "abc")
    files = list_files(Source(type="hub", dataset=str(tmp_path / "here")), "p")
    assert [Path(file.path).name for file in files] == ["train-00000.parquet", "train-00001.parquet"]


class TestDatasetOfTheHub:
    """What a dataset's card may name, as `datasets` resolves it."""

    @pytest.fixture
    def named(self, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        named: list[str] = []
        builder = SimpleNamespace(config=SimpleNamespace(data_files={"train": named}))
        monkeypatch.setattr("datasets.load_dataset_builder", lambda *args, **kwargs: builder)
        monkeypatch.setattr(listing, "_match_remote", lambda pattern, *rest: [pattern])
        monkeypatch.setattr(
            listing, "_remote_file", lambda path: SimpleNamespace(stat=lambda: FileStat(5, "t"))
        )
        return named

    def test_files_of_its_own_are_taken(self, named: list[str]) -> None:
        named += [
            "hf://datasets/me/toy@abc/a.parquet",
            "hf://datasets/me/toy@refs%2Fconvert%2Fparquet/b.parquet",
        ]
        for dataset in ("me/toy", "hf://datasets/me/toy"):
            files = list_files(Source(type="hub", dataset=dataset), "p")
            assert [file.path for file in files] == named

    @pytest.mark.parametrize(
        "path",
        [
            "/etc/passwd.txt",
            "hf://datasets/me/toys@abc/a.parquet",
            "hf://datasets/you/toy@abc/a.parquet",
            "hf://datasets/me/toy@abc/../../you/toy/a.parquet",
            "https://host/a.parquet",
            "zip://a.txt::hf://datasets/me/toy@abc/a.zip",
        ],
    )
    def test_others_are_refused(self, named: list[str], path: str) -> None:
        named.append(path)
        with pytest.raises(UserError) as failure:
            list_files(Source(type="hub", dataset="me/toy"), "p")
        assert str(failure.value) == f"p.dataset: me/toy names {path}, which is no file of the dataset"


def test_a_dataset_of_another_kind_is_refused(tmp_path: Path, dataset: Path) -> None:
    (tmp_path / "table").mkdir()
    (tmp_path / "table" / "train.csv").write_text("text\nx\n")
    with pytest.raises(UserError, match=r"train.csv: files of this kind are not read; .*\.parquet"):
        list_files(Source(type="hub", dataset=str(tmp_path / "table")), "p")


def test_a_dataset_that_is_not_there_is_told(tmp_path: Path, dataset: Path) -> None:
    with pytest.raises(UserError, match=r"p.dataset: .*gone cannot be opened .*; check the id"):
        list_files(Source(type="hub", dataset=str(tmp_path / "gone")), "p")
    with pytest.raises(UserError, match=r"p.dataset: a hub source needs a dataset's id"):
        list_files(Source(type="hub"), "p")
