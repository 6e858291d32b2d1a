"""The W&B dashboard: what is sent, to whom, and what is written if nothing can be sent. See also test_wandb_run.py."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from paths import ROOT

from babble.cli import CommandError
from babble.dashboard import DashboardConfig, build
from babble.reporting.workspace import SAMPLES, STEP, make_sections
from babble.training import wandb_run

HEADINGS = ["Loss, with baselines", "By field group", "Layers: frozen and unfrozen"]
HEADINGS += ["Samples: babble and real speech", "Speed", "Sweeps: the effect of settings"]


@pytest.fixture
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", 40 * "0")
    monkeypatch.setenv("WANDB_MODE", "online")


@pytest.fixture
def no_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.mark.usefixtures("no_key")
@pytest.mark.parametrize(("entity", "flag"), [(None, ""), ("us", "--entity us ")])
def test_without_a_key_it_writes_what_it_would_send(
    entity: str | None, flag: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    build(DashboardConfig(entity=entity, project="ours", out=tmp_path / "sent.json"))
    printed = capsys.readouterr().out
    assert "nothing was sent" in printed
    assert f"wandb login, then babble dashboard {flag}--project ours" in printed
    found = json.loads((tmp_path / "sent.json").read_text())
    assert (found["workspace"]["entity"], found["workspace"]["project"]) == (entity or "", "ours")
    assert found["report"]["project"]["name"] == "ours"
    sections = found["workspace"]["spec"]["section"]["panelBankConfig"]["sections"]
    assert [section["name"] for section in sections] == HEADINGS
    blocks = found["report"]["spec"]["blocks"]
    assert [block["children"][0]["text"] for block in blocks if block["type"] == "heading"] == HEADINGS
    assert sum(block["type"] == "panel-grid" for block in blocks) == len(HEADINGS)


@pytest.mark.usefixtures("key")
@pytest.mark.parametrize(("entity", "expected"), [(None, "owner-of-the-key"), ("us", "us")])
def test_the_entity_is_that_of_the_key_unless_given(
    entity: str | None,
    expected: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("wandb.Api", lambda: SimpleNamespace(default_entity="owner-of-the-key"))
    for name in ("workspaces.Workspace", "reports.v2.Report"):
        monkeypatch.setattr(f"wandb_workspaces.{name}.save", lambda made: SimpleNamespace(url=f"https://{made.entity}"))
    build(DashboardConfig(entity=entity, out=tmp_path / "sent.json"))
    assert capsys.readouterr().out == 2 * f"https://{expected}\n"
    assert not (tmp_path / "sent.json").exists()


@pytest.mark.usefixtures("key")
def test_what_is_not_accepted_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(workspace: object) -> None:
        raise ConnectionError("no answer")

    monkeypatch.setattr("wandb_workspaces.workspaces.Workspace.save", fail)
    with pytest.raises(CommandError, match=r"did not accept them \(no answer\); workspace and report are in .*x\.json"):
        build(DashboardConfig(entity="us", out=tmp_path / "x.json"))
    assert json.loads((tmp_path / "x.json").read_text()).keys() == {"workspace", "report"}


def test_help_needs_no_wandb() -> None:
    code = (
        "import runpy, sys; sys.modules['wandb'] = sys.modules['wandb_workspaces'] = None; "
        "sys.argv = ['dashboard', '--help']; runpy.run_module('babble.dashboard', run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--entity" in done.stdout


def test_every_section_has_panels_and_a_note() -> None:
    for section in make_sections():
        assert len(section.panels) >= 2
        assert section.note.endswith(".")


def test_steps_and_samples_have_the_names_that_training_logs() -> None:
    assert (STEP, SAMPLES) == (wandb_run.STEP, wandb_run.SAMPLES)
