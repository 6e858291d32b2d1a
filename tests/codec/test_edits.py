"""Edits change one group of fields, by the amount in Hz or dB, and nothing else."""

import numpy as np
import pytest
from paths import SPEECH

from babble.codec.codec2 import decode_frames, encode_pcm
from babble.codec.edits import apply_edits, parse_edits
from babble.codec.frames import MODES, Mode, energy_db, is_voiced, lsp_hz, pitch_hz, unpack_packets
from preprocessing.audio import open_recording

RECORDING = SPEECH / "allison-01.ogg"


def read_speech(mode: Mode) -> np.ndarray:
    """Return 200 frames of real speech."""
    with open_recording(RECORDING) as recording:
        pcm = next(recording.pcm_blocks())
    return unpack_packets(encode_pcm(pcm[: 200 * mode.pcm_per_frame], mode), mode)


def change(frames: np.ndarray, text: str, mode: Mode) -> np.ndarray:
    changed = apply_edits(frames, parse_edits(text, mode), mode)
    groups = {edit.partition("=")[0].strip() for edit in text.split(",")}
    others = [f for f, field in enumerate(mode.fields) if field.group not in groups]
    assert np.array_equal(changed[:, others], frames[:, others])
    assert changed.dtype == frames.dtype
    return changed


def loudness_db(pcm: np.ndarray) -> float:
    return float(10 * np.log10(np.mean(pcm.astype(float) ** 2)))


@pytest.mark.parametrize("name", ["3200", "1600", "1300", "700C"])
def test_pitch_and_energy_get_the_values_of_the_edit(name: str) -> None:
    mode = MODES[name]
    frames = read_speech(mode)
    voiced = is_voiced(frames, mode)
    flat = change(frames, "pitch=flat:120", mode)
    hz = pitch_hz(flat, mode)
    assert hz is not None
    assert np.array_equal(is_voiced(flat, mode), voiced)
    assert np.nanmax(np.abs(hz - 120)) < 4
    before, mean = pitch_hz(frames, mode), pitch_hz(change(frames, "pitch=mean", mode), mode)
    assert before is not None
    assert mean is not None
    assert np.nanstd(mean) == 0
    assert np.nanmean(mean) == pytest.approx(np.nanmean(before), abs=0.1 * np.nanmean(before))
    db, louder = energy_db(frames, mode), energy_db(change(frames, "energy=+6dB", mode), mode)
    assert db is not None
    assert louder is not None
    below = louder < louder.max()
    assert np.abs(louder - db - 6)[below].max() <= 1.25


@pytest.mark.parametrize("name", ["1600", "1300"])
def test_scaled_pitch_and_spectrum_are_that_factor_higher(name: str) -> None:
    mode = MODES[name]
    frames = read_speech(mode)
    higher, before = pitch_hz(change(frames, "pitch=scale:1.2", mode), mode), pitch_hz(frames, mode)
    assert higher is not None
    assert before is not None
    voiced = is_voiced(frames, mode) & (before < 300)
    assert higher[voiced] / before[voiced] == pytest.approx(1.2, rel=0.02)
    lsp, wider = lsp_hz(frames, mode), lsp_hz(change(frames, "lsp=scale:1.1", mode), mode)
    assert lsp is not None
    assert wider is not None
    inside = (wider > wider.min(axis=0)) & (wider < wider.max(axis=0))
    assert np.abs(wider - 1.1 * lsp)[inside].max() <= 100
    assert np.mean((wider / lsp)[inside]) == pytest.approx(1.1, abs=0.01)


def test_scaled_pitch_leaves_unvoiced_frames_of_mode_700c() -> None:
    mode = MODES["700C"]
    frames = read_speech(mode)
    voiced, before = is_voiced(frames, mode), pitch_hz(frames, mode)
    higher = change(frames, "pitch=scale:1.2", mode)
    assert before is not None
    assert not voiced.all()
    assert np.array_equal(higher[~voiced], frames[~voiced])
    inside = voiced & (before < 300)
    after = pitch_hz(higher, mode)
    assert after is not None
    assert after[inside] / before[inside] == pytest.approx(1.2, rel=0.03)


def test_the_spectrum_is_constant_and_a_whisper_is_unvoiced() -> None:
    mode = MODES["1300"]
    frames = read_speech(mode)
    still = lsp_hz(change(frames, "lsp=mean", mode), mode)
    assert still is not None
    assert np.ptp(still, axis=0).max() == 0
    assert np.all(np.diff(still[0]) > 0)
    assert not is_voiced(change(frames, "voicing=off", mode), mode).any()
    assert is_voiced(change(frames, "voicing=on", mode), mode).all()


def test_edits_are_audible_in_the_decoded_speech() -> None:
    mode = MODES["1300"]
    frames = read_speech(mode)
    frames[:, mode.group_indices("energy")] = np.minimum(frames[:, mode.group_indices("energy")], 24)
    plain = decode_frames(frames, mode)
    softer = decode_frames(change(frames, "energy=-6dB", mode), mode)
    assert loudness_db(softer) - loudness_db(plain) == pytest.approx(-6, abs=1)
    buzz = decode_frames(change(frames, "pitch=flat:125,voicing=on", mode), mode).astype(float)
    spectrum = np.abs(np.fft.rfft(buzz * np.hanning(len(buzz))))
    hz = np.fft.rfftfreq(len(buzz), 1 / 8000)
    # Nearly all energy is at multiples of the pitch.
    flat = pitch_hz(change(frames, "pitch=flat:125,voicing=on", mode), mode)
    assert flat is not None
    apart = np.abs((hz / flat[0] + 0.5) % 1 - 0.5)
    assert (spectrum[apart < 0.1] ** 2).sum() > 0.9 * (spectrum**2).sum()


def test_edits_combine_and_pitch_has_no_mean_without_a_voiced_frame() -> None:
    mode = MODES["1300"]
    frames = read_speech(mode)
    together = change(frames, "pitch=flat:200, lsp=mean", mode)
    assert np.array_equal(together, change(change(frames, "lsp=mean", mode), "pitch=flat:200", mode))
    whisper = change(frames, "voicing=off", mode)
    assert np.array_equal(change(whisper, "pitch=mean", mode), whisper)


@pytest.mark.parametrize(
    ("text", "name", "message"),
    [
        ("pitch=flat:20", "1300", "must be from 50 to 397"),
        ("energy=6dB", "1300", "'energy=6dB' must be one of: energy="),
        ("loud=3", "1300", "'loud=3' must be one of: pitch="),
        ("pitch=flat:120", "1200", "can't be changed in mode 1200, which codes it as a label"),
        ("lsp=mean", "700C", "codes it as a label"),
        ("voicing=off", "700C", "has no fields for it"),
        ("pitch=scale:9", "1300", "a scale must be from 0.25 to 4"),
        ("lsp=scale:1.1", "3200", "differences of LSPs, which can.t be scaled"),
        ("", "1300", "'' must be one of"),
        ("pitch=mean,lsp=mean, pitch=scale:2", "1300", "pitch is named 2 times; name it once"),
    ],
)
def test_an_edit_without_meaning_is_rejected(text: str, name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_edits(text, MODES[name])
