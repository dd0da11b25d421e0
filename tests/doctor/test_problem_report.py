"""`llmkit doctor --report`: one page that tells enough, and gives nothing away."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llmkit.cli import main
from llmkit.doctor import problem_report as module
from llmkit.doctor.findings import Finding, Report
from llmkit.doctor.problem_report import problem_report
from llmkit.errors import UserError

MACHINE = Report("n1", (Finding("torch", "ok", "2.13.0"), Finding("free", "fail", "1 GiB", "free some")))
SECRETS = {"WANDB_API_KEY": "0123456789abcdef0123456789abcdef01234567", "MY_ACCESS_TOKEN": "word-of-mouth"}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "demo"
    (folder / "configs").mkdir(parents=True)
    (folder / "logs").mkdir()
    (folder / "logs/stacks-00000002").mkdir()
    (folder / "config.yaml").write_text("data:\n  url: https://me:pass@host/x\n")
    (folder / "manifest.json").write_text(json.dumps({"llmkit": "0.1.0", "key": SECRETS["MY_ACCESS_TOKEN"]}))
    rows = [{"step": step, "loss": 2.0} for step in range(1, 101)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "events.jsonl").write_text('{"event": "fault", "reason": "````\\u001b[2J"}\n' + "x" * 10_000)
    (folder / "logs/rank-0.txt").write_bytes(b"token " + SECRETS["WANDB_API_KEY"].encode() + b"\xff\n")
    (folder / "logs/stacks-00000002/rank-00000.txt").write_text("in all_reduce\n")
    (folder / "logs/link.txt").symlink_to("/etc/passwd")
    return folder


def test_the_page_has_the_machine_the_settings_and_the_ends_of_files(run: Path) -> None:
    lines = list(problem_report(MACHINE, run, SECRETS))
    page = "\n".join(lines)
    for part in ("2.13.0", "-> free some", '"llmkit": "0.1.0"', "in all_reduce", '"step": 100', '"step": 96'):
        assert part in page
    assert '"step": 95' not in page and "root:" not in page
    assert not [secret for secret in (*SECRETS.values(), "pass@", "\x1b") if secret in page]
    assert max(map(len, lines)) <= module.LONGEST + 10
    assert page.count("````") == 2 * page.count("\n## "), "nothing in a file ends its block"


def test_of_a_long_file_its_end_is_read(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TAIL", 60)
    page = "\n".join(problem_report(MACHINE, run, {}))
    assert '[...]\n{"step": 99, "loss": 2.0}\n{"step": 100, "loss": 2.0}\n````' in page


def test_no_secret_of_the_environment_or_in_a_line_is_left(run: Path) -> None:
    environment = {
        "AWS_SESSION_TOKEN": "session-value-1", "GITLAB_TOKEN": "gitlab-value-2", "PGPASSWORD": "postgres-3",
        "S3_KEY": "storage-value-4", "PWD": "/home/ann", "OLDPWD": "/home/bob/x",
    }  # fmt: skip
    web_token = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.c2lnbmF0dXJl"
    keys = [
        web_token, "AKIAIOSFODNN7EXAMPLE", "ASIAIOSFODNN7EXAMPLE", "github_pat_11ABCDEFG0aBcDeFgHiJ",
        "glpat-aBcDeFgHiJkLmNoPqRsT", "gho_aBcDeFgHiJkLmNoP", "xoxb-123456789012-abcdef",
    ]  # fmt: skip
    lines = [
        *(f"got {value} here" for value in environment.values()), *(f"with {key}." for key in keys),
        "api_key: plainsecretvalue, step 7", f"Authorization: Bearer {web_token}",
        "authorization = Basic dXNlcjpwYXNz", '{"password": "plain, \\"secretvalue", "loss": 2.5}',
        '{"reason": "a\\npassword=plainsecretvalue"}', "x" * 60_000,
        '{"text": "{\\\\"api_key\\\\": \\\\"plainsecretvalue\\\\"}", "loss": 3.5}',
        "MY_PWD=plainsecretvalue", "loss_per_token: 2.25", "in /home/ann and /home/bob/x",
    ]  # fmt: skip
    (run / "logs/rank-0.txt").write_text("\n".join(lines))
    page = "\n".join(problem_report(MACHINE, run, environment))
    secrets = [value for name, value in environment.items() if not name.endswith("PWD")]
    secrets += [*keys, "secretvalue", "dXNlcjpwYXNz", "c2lnbmF0dXJl", "EXAMPLE"]
    assert not [secret for secret in secrets if secret in page]
    assert "in /home/ann and /home/bob/x" in page and "loss_per_token: 2.25" in page
    for shown in (
        "api_key: ... (not shown), step 7", '{"password": "... (not shown)", "loss": 2.5}',
        "MY_PWD=... (not shown)", '"loss": 3.5}', "Authorization: ... (not shown)",
    ):  # fmt: skip
        assert shown in page


def test_what_is_missing_is_said(run: Path) -> None:
    (run / "metrics.jsonl").unlink()
    assert "(cannot be read: No such file or directory)" in "\n".join(problem_report(MACHINE, run, {}))


def test_another_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is no run folder: it has no config"):
        list(problem_report(MACHINE, tmp_path, {}))


def test_it_is_a_page_of_this_machine_alone(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["doctor", "--report", "--json"]) == 2
    assert "--report is a page of this machine" in capsys.readouterr().err
    with monkeypatch.context() as before:
        before.setattr("llmkit.doctor.command.run_checks", lambda *given: pytest.fail("checked first"))
        assert main(["doctor", "--report", "nowhere"]) == 2
    assert "nowhere is no run folder" in capsys.readouterr().err
    assert main(["doctor", "--report", "--seconds", "600"]) in (0, 1)
    page = capsys.readouterr().out
    assert page.startswith("# llmkit on ") and "torch" in page
