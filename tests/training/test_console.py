"""What a training prints while it runs."""

from types import SimpleNamespace
from typing import Any

import pytest
from pytorch_lightning.callbacks import Timer

from babble.codec.frames import MODES, TOKENS, Mode
from babble.training import console
from babble.training.console import ConsoleLogger, DurationWarning, ProgressBar, warn_if_long


def _trainer(step: int, **metrics: float) -> Any:
    names = {"bits": "val/bits_per_frame", "speed": "train/frames_per_second"}
    known = {names[key]: value for key, value in metrics.items()}
    return SimpleNamespace(global_step=step, current_epoch=2, is_global_zero=True, callback_metrics=known)


def _module(loss: float | None = None, mode: Mode = MODES["1300"]) -> Any:
    model = SimpleNamespace(head=SimpleNamespace(has_likelihood=True))
    return SimpleNamespace(model=model, mode=mode, monitor="val/bits_per_frame", latest_loss=loss)


def test_lines_show_bits_per_frame_for_training_and_validation(capsys: pytest.CaptureFixture[str]):
    # 2 bits per field are 32 bits per frame of 16 fields.
    ConsoleLogger((), epochs=20, steps=None).on_validation_end(_trainer(120, bits=30.123, speed=5512.0), _module(2.0))
    line = "epoch 3/20, step 120: 32.00 in training, 30.12 in validation (bits per frame), 5,512 frames/s\n"
    assert capsys.readouterr().out == line


def test_the_time_left_is_that_of_the_first_limit(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    now = SimpleNamespace(seconds=0.0)
    monkeypatch.setattr(console.time, "monotonic", lambda: now.seconds)
    timer = Timer({"minutes": 9}, verbose=False)  # type: ignore[dict-item]
    callbacks = [ConsoleLogger((), None, 1000, timer), ConsoleLogger((), None, None, timer)]
    for callback in (timer, *callbacks):
        callback.on_train_start(_trainer(0), _module())
    for minutes, steps, left in ((1, 200, ("4.0", "8.0")), (2, 20, ("7.0", "7.0")), (10, 30, ("0.0", "0.0"))):
        now.seconds = 60.0 * minutes
        for callback in callbacks:
            callback.on_validation_end(_trainer(steps, bits=30.0), _module(2.0))
        printed = capsys.readouterr().out.splitlines()
        assert [line.rpartition(", ")[2] for line in printed] == [f"{one} min left" for one in left]


def test_the_progress_bar_shows_the_same():
    shown = ProgressBar().get_metrics(_trainer(120, bits=30.123), _module(2.0))
    assert shown == {"bits per frame, training": "32.00", "bits per frame, validation": "30.12"}
    # A token has two fields.
    shown = ProgressBar().get_metrics(_trainer(120, bits=5.5), _module(3.0, TOKENS))
    assert shown == {"bits per token, training": "6.00", "bits per token, validation": "5.50"}


def test_a_training_of_more_than_a_day_is_warned_about_with_a_smaller_recipe():
    assert warn_if_long(1.0, 24 * 3600) is None
    warning = warn_if_long(2.0, 2 * 24 * 3600)
    assert warning is not None
    assert "about 4.0 days (2 s per step)" in warning
    assert "--config babble-cpu" in warning


def test_the_warning_comes_once_from_the_first_steps(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    now = SimpleNamespace(seconds=0.0)
    monkeypatch.setattr(console.time, "monotonic", lambda: now.seconds)
    callback = DurationWarning(steps=100_000)
    for step in range(1, 100):
        # The first step is slow, as it allocates memory.
        now.seconds += 30 if step == 1 else 2
        callback.on_train_batch_end(_trainer(step))
    printed = capsys.readouterr().out
    assert printed.count("Warning") == 1
    assert "about 2.3 days (2 s per step)" in printed
