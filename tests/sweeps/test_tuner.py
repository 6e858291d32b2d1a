"""The state of Ray Tune after a full disk: what is damaged is removed."""

import json
import pickle
from pathlib import Path

import pytest

from babble.sweeps.tuner import _remove_damaged_state

FIRST, SECOND = "2026-11-26_06-04-29", "2026-11-26_06-05-30"


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """A folder with the states of two starts."""
    for start in (FIRST, SECOND):
        (tmp_path / f"experiment_state-{start}.json").write_text(json.dumps({"trial_data": [start]}))
        (tmp_path / f"basic-variant-state-{start}.json").write_bytes(pickle.dumps({"start": start}))
    (tmp_path / "tuner.pkl").write_bytes(pickle.dumps({"a": 1}))
    return tmp_path


def _starts(folder: Path) -> set[str]:
    return {path.stem[-19:] for path in folder.glob("*-*.json")}


def test_a_whole_state_stays(state: Path):
    _remove_damaged_state(state)
    assert _starts(state) == {FIRST, SECOND}
    _remove_damaged_state(state / "new")
    assert not (state / "new").exists()


@pytest.mark.parametrize("kind", ["experiment_state", "basic-variant-state"])
def test_an_older_state_replaces_one_that_is_cut_short_or_lacks_a_file(kind: str, state: Path):
    path = state / f"{kind}-{SECOND}.json"
    whole = path.read_bytes()
    path.write_bytes(whole[:-5])
    _remove_damaged_state(state)
    assert _starts(state) == {FIRST}
    (state / f"experiment_state-{SECOND}.json").write_bytes(b"{}")
    _remove_damaged_state(state)
    assert _starts(state) == {FIRST}


def test_without_any_whole_state_the_sweep_starts_anew(state: Path, capsys: pytest.CaptureFixture[str]):
    (state / "tuner.pkl").write_bytes(b"")
    _remove_damaged_state(state)
    assert not state.exists()
    assert "every trial is trained again" in capsys.readouterr().err
