"""The report command; for its data and page see tests/reporting."""

from pathlib import Path
from unittest import mock

import pytest

from babble import report
from babble.report import ReportConfig
from babble.reporting.render import write_report


def test_the_command_takes_runs_as_bare_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").write_text("model: {units: 8}\n")
    page = tmp_path / "pages" / "page.html"
    argv = ["report", str(tmp_path / "first"), str(tmp_path / "second"), "--out", str(page), "--epochs", "1"]
    with mock.patch("sys.argv", argv):
        report.main()
    assert f"{page}: first, second; 0 clips; " in capsys.readouterr().out
    assert "<title>babble: first, second</title>" in page.read_text()


def test_a_folder_that_is_not_a_run_is_an_error(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="not a run"):
        write_report([tmp_path], tmp_path / "page.html")


def test_settings_without_effect_are_rejected(tmp_path: Path):
    with pytest.raises(ValueError, match="no run given"):
        ReportConfig()
    with pytest.raises(ValueError, match="--epochs 0"):
        ReportConfig(runs=(tmp_path,), epochs=0)
