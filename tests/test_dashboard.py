"""The dashboard as code: written where it can't be sent, in the order in which one asks. See also test_tracking.py."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from babble.cli import CommandError
from babble.dashboard import DashboardConfig, build, make_sections

QUESTIONS = ["Does it learn?", "Is it better than no network?", "Which field?", "Do the layers wake?"]
QUESTIONS += ["How does it sound?", "Is it fast?", "Which setting mattered?"]


def test_without_a_key_it_writes_what_it_would_send_and_says_how(tmp_path: Path) -> None:
    out = tmp_path / "sent.json"
    keyless = {key: value for key, value in os.environ.items() if key != "WANDB_API_KEY"} | {"HOME": str(tmp_path)}
    command = [sys.executable, "-m", "babble.dashboard", "--entity", "us", "--project", "ours", "--out", str(out)]
    done = subprocess.run(command, env=keyless, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "nothing was sent" in done.stdout
    assert "wandb login, then python -m babble.dashboard --entity us --project ours" in done.stdout
    found = json.loads(out.read_text())
    assert (found["workspace"]["entity"], found["workspace"]["project"]) == ("us", "ours")
    assert found["report"]["project"] == {"entityName": "us", "name": "ours"}
    sections = found["workspace"]["spec"]["section"]["panelBankConfig"]["sections"]
    assert [section["name"] for section in sections] == QUESTIONS
    blocks = found["report"]["spec"]["blocks"]
    assert [b["children"][0]["text"] for b in blocks if b["type"] == "heading"] == QUESTIONS
    assert sum(block["type"] == "panel-grid" for block in blocks) == len(QUESTIONS)


def test_what_is_not_taken_is_written_and_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", 40 * "0")
    monkeypatch.setenv("WANDB_MODE", "online")

    def refuse(workspace: object) -> None:
        raise ConnectionError("nobody answers")

    monkeypatch.setattr("wandb_workspaces.workspaces.Workspace.save", refuse)
    with pytest.raises(CommandError, match=r"did not take them \(nobody answers\); what would be sent is in .*x\.json"):
        build(DashboardConfig(entity="us", out=tmp_path / "x.json"))
    assert json.loads((tmp_path / "x.json").read_text()).keys() == {"workspace", "report"}


def test_a_dashboard_is_somebodys() -> None:
    with pytest.raises(ValueError, match="--entity is missing"):
        DashboardConfig()


def test_every_question_has_panels_and_says_how_to_read_them() -> None:
    for section in make_sections():
        assert len(section.panels) >= 2
        assert section.answer.endswith(".")
