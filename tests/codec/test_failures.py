"""Each failure, made from real speech, is detected soon; real speech raises no alarm."""

import json
from dataclasses import asdict
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from paths import SPEECH, TALE

from babble.codec.codec2 import encode_pcm, read_c2cb, silence_frame
from babble.codec.failures import KINDS, SILENCE_SECONDS, WINDOW_SECONDS, Alarm, Guard
from babble.codec.frames import MODES, Mode, unpack_packets
from babble.data.shards import read_manifest, read_recordings

MODE = MODES["1300"]
RATE = MODE.frames_per_second


@cache
def read_speech(mode: Mode, seconds: int = 20) -> np.ndarray:
    """Return frames of real speech."""
    import soundfile

    speech = SPEECH / "allison-01.ogg"
    pcm, _ = soundfile.read(speech, frames=seconds * 8000, dtype="int16")
    return unpack_packets(encode_pcm(pcm, mode), mode)


def fail(kind: str, speech: np.ndarray, mode: Mode) -> np.ndarray:
    """Return 20 s of a failure, made from real speech."""
    rate = mode.frames_per_second
    loud = speech[: 8 * rate]
    # A network that repeats a frame repeats a voiced one.
    voiced = mode.group_indices("voicing") or mode.group_indices("pitch")
    start = next(t for t in range(rate, len(loud)) if (loud[t : t + 8, voiced] > 0).all())
    repeated = {
        "silence": silence_frame(mode)[None],
        "tone": loud[start : start + 1],
        "pulse": loud[start : start + rate // 5],
        "loop": loud[rate : 4 * rate],
    }[kind]
    return np.resize(repeated, (20 * rate, mode.num_fields))


@pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_failure_is_detected_once_with_its_kind(kind: str, mode: Mode) -> None:
    speech = read_speech(mode)
    alarms = Guard(mode).update(np.concatenate([speech, fail(kind, speech, mode), speech]))
    json.dumps([asdict(alarm) for alarm in alarms])
    assert [alarm.kind for alarm in alarms] == [kind]
    # The end of the speech may resemble the beginning of the failure.
    assert alarms[0].first_frame / mode.frames_per_second == pytest.approx(
        len(speech) / mode.frames_per_second, abs=1.5
    )
    assert alarms[0].frames <= (WINDOW_SECONDS + 5) * mode.frames_per_second


def test_an_alarm_has_the_period() -> None:
    speech = read_speech(MODE)
    periods = {kind: Guard(MODE).update(np.concatenate([speech, fail(kind, speech, MODE)]))[0] for kind in KINDS}
    assert {kind: alarm.period_frames for kind, alarm in periods.items()} == {
        "silence": 0,
        "tone": 1,
        "pulse": RATE // 5,
        "loop": 3 * RATE,
    }


def test_a_trembling_tone_is_a_tone() -> None:
    rng = np.random.default_rng(0)
    tone = fail("tone", read_speech(MODE), MODE).astype(int)
    pitch, energy, *lsps = [4, 5, *MODE.group_indices("lsp")[:7]]
    tone[:, lsps] = np.clip(tone[:, lsps] + rng.integers(0, 2, (len(tone), 7)), 0, 15)
    tone[:, energy] += rng.integers(0, 2, len(tone))
    tone[:, pitch] = rng.integers(0, 128, len(tone))
    assert [alarm.kind for alarm in Guard(MODE).update(tone.astype(np.uint8))] == ["tone"]


def test_silence_with_the_noise_of_a_pause_is_detected_after_the_longest_pause() -> None:
    rng = np.random.default_rng(0)
    noise = rng.integers(0, MODE.levels, (30 * RATE, MODE.num_fields))
    noise[:, MODE.group_indices("energy")] = rng.integers(0, 9, (30 * RATE, 1))
    alarm = Alarm("silence", 0, SILENCE_SECONDS * RATE, 0)
    assert Guard(MODE).update(noise[: SILENCE_SECONDS * RATE - 1].astype(np.uint8)) == []
    assert Guard(MODE).update(noise.astype(np.uint8)) == [alarm]


@pytest.mark.parametrize("block", [1, 7, 50, 2000])
def test_the_size_of_blocks_changes_nothing(block: int) -> None:
    speech = read_speech(MODE)
    frames = np.concatenate([speech, fail("pulse", speech, MODE), speech, fail("tone", speech, MODE)])
    guard = Guard(MODE)
    alarms = [alarm for t in range(0, len(frames), block) for alarm in guard.update(frames[t : t + block])]
    assert alarms == Guard(MODE).update(frames)
    assert [alarm.kind for alarm in alarms] == ["pulse", "tone"]
    assert guard.failing == alarms[-1]


def test_a_failure_that_ends_is_over() -> None:
    speech = read_speech(MODE)
    guard = Guard(MODE)
    guard.update(np.concatenate([fail("tone", speech, MODE), speech]))
    assert guard.failing is None


def test_speech_of_all_splits_raises_no_alarm(speech_shards: Path) -> None:
    manifest = read_manifest(speech_shards)
    for split in ("train", "validation", "test"):
        for recording in read_recordings(speech_shards, manifest, split):
            assert Guard(manifest.mode).update(recording.frames) == []


@pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
def test_speech_raises_no_alarm_in_any_mode(mode: Mode) -> None:
    assert Guard(mode).update(read_speech(mode, seconds=60)) == []


def test_an_hour_of_the_tale_raises_no_alarm() -> None:
    if not TALE.is_dir():
        pytest.skip("the Tale corpus is not at hand")
    assert Guard(MODE).update(read_c2cb(TALE / "part-13.c2cb", MODE)) == []
