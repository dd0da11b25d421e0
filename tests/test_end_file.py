"""How a start ended, as the batch script that made it reads it."""

from __future__ import annotations

import json

import pytest

from llmkit.end_file import END_FILE, End, errors_recorded, forget_end, own_host, read_end, write_end
from llmkit.errors import AlreadyReported, RunFault, UserError


@pytest.fixture
def asked(tmp_path):
    """The environment of a start whose end is written to tmp_path/end."""
    return {END_FILE: str(tmp_path / "end")}


def test_an_end_is_written_whole_and_read_back(tmp_path, asked):
    end = End("fault", "rank 3 has gone: 'ü' \n x", step=12, saved_step=10, first_step=4, hosts=("n3", "n4"))
    write_end(end, asked)
    assert read_end(tmp_path / "end") == end
    assert json.loads((tmp_path / "end").read_text()) == {
        "end": "fault", "reason": end.reason, "step": 12, "saved_step": 10, "first_step": 4,
        "hosts": ["n3", "n4"],
    }  # fmt: skip
    assert [path.name for path in tmp_path.iterdir()] == ["end"]


def test_the_first_of_several_ends_stays(tmp_path, asked):
    write_end(End("fault", "first", hosts=("n1",)), asked)
    write_end(End("stopped", "second"), asked)
    assert read_end(tmp_path / "end") == End("fault", "first", hosts=("n1",))


def test_nothing_is_written_where_nobody_asks(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_end(End("done"), {})
    write_end(End("done"), {END_FILE: ""})
    assert list(tmp_path.iterdir()) == []


def test_where_it_cannot_be_written_the_file_is_named(tmp_path):
    with pytest.raises(RunFault, match=r"missing/end \(END_FILE\): No such file"):
        write_end(End("done"), {END_FILE: str(tmp_path / "missing" / "end")})


@pytest.mark.parametrize(
    "content",
    [
        b"", b"{", b"[]", b"\xff", b'{"end": "done"}', b'{"end": "over", "hosts": []}', b"[" * 100_000,
        b'{"end": "fault", "hosts": [1]}', b'{"end": "fault", "hosts": 3}', b'{"end": [], "hosts": []}',
        b'{"end": "fault", "hosts": [], "step": "x"}', b'{"end": "fault", "hosts": [], "more": 1}',
        b'{"end": "fault", "hosts": [], "reason": 5}',
    ],
)  # fmt: skip
def test_what_is_no_end_is_none(tmp_path, content):
    (tmp_path / "end").write_bytes(content)
    assert read_end(tmp_path / "end") is None


@pytest.mark.parametrize(
    ("error", "end"),
    [
        (UserError("my.yaml:3: no"), End("mistake", "my.yaml:3: no")),
        (RunFault("the disk is full"), End("fault", "the disk is full")),
        (RunFault("n2 has gone", ["n2"]), End("fault", "n2 has gone", hosts=("n2",))),
        (KeyError("x"), End("fault", "KeyError: 'x'")),
        (MemoryError(), End("fault", "MemoryError: ")),
    ],
)
def test_an_error_is_written_as_the_end_and_goes_on(tmp_path, asked, error, end):
    with pytest.raises(type(error)), errors_recorded(asked):
        raise error
    assert read_end(tmp_path / "end") == end


def test_what_another_process_has_reported_is_not_written_again(tmp_path, asked):
    with pytest.raises(AlreadyReported), errors_recorded(asked):
        raise AlreadyReported(1)
    assert list(tmp_path.iterdir()) == []


def test_an_error_stays_itself_where_the_end_cannot_be_written(tmp_path):
    with pytest.raises(UserError, match="no"), errors_recorded({END_FILE: str(tmp_path / "missing" / "end")}):
        raise UserError("no")


def test_an_attempt_begins_without_the_end_of_the_one_before(tmp_path, asked):
    write_end(End("fault"), asked)
    forget_end(asked)
    forget_end(asked)
    forget_end({})
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "end").mkdir()
    with pytest.raises(RunFault, match=r"cannot remove .*end \(END_FILE\)"):
        forget_end(asked)


def test_a_host_has_slurms_name_where_there_is_one():
    assert own_host({"SLURMD_NODENAME": "gpu-17"}) == "gpu-17"
    assert own_host({})
