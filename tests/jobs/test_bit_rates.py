"""The comparison of Codec 2's modes: a small one, from recordings to its table."""

import csv
from pathlib import Path

import numpy as np
import pytest
import soundfile
from paths import SPEECH

from babble.codec.codec2 import decode_packets, encode_pcm
from babble.codec.frames import get_mode
from babble.evaluation.distance import add_differences, frechet_distance_of_features
from jobs import bit_rates
from jobs.bit_rates import MEL_BANDS, MEL_STEPS, BitRatesConfig, compare_bit_rates, log_mel


def _speech(number: int, seconds: int) -> np.ndarray:
    pcm, _ = soundfile.read(SPEECH / f"allison-{number:02d}.ogg", dtype="int16", frames=seconds * 8000)
    return pcm


def test_a_tone_is_in_its_mel_band() -> None:
    tone = (8000 * np.sin(2 * np.pi * 1000 * np.arange(8000) / 8000)).astype(np.int16)
    bands = log_mel(tone)
    assert bands.shape == (97, MEL_BANDS)
    # Of 40 bands up to 4 kHz (2146 mel), the one around 1 kHz (1000 mel) is number 18.
    assert (bands.argmax(axis=1) == round(1000 / 2146 * 41) - 1).all()


def test_the_distance_of_mel_spectra_grows_as_the_bit_rate_falls() -> None:
    original = _speech(1, 30)

    def distance(pcm: np.ndarray) -> float:
        features = [add_differences(log_mel(some), MEL_STEPS) for some in (pcm, original)]
        return frechet_distance_of_features(*features)

    high, low = (
        distance(decode_packets(encode_pcm(original, get_mode(mode)), get_mode(mode))) for mode in ("3200", "700C")
    )
    assert 0 < high < low


def test_one_recording_must_be_held_out(tmp_path: Path) -> None:
    sources, out = (SPEECH / "allison-01.ogg", SPEECH / "allison-02.ogg"), tmp_path / "out"
    with pytest.raises(ValueError, match=r"--validation allison-\* matches allison-01, allison-02: name one recording"):
        compare_bit_rates(BitRatesConfig(sources, "allison-*", out))
    with pytest.raises(ValueError, match="no recording matches 'allison-03'"):
        compare_bit_rates(BitRatesConfig(sources, "allison-03", out))
    assert not out.exists()


@pytest.mark.slow
def test_a_comparison_has_a_row_per_mode_and_seed_and_continues(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for number, seconds in ((1, 40), (2, 40)):
        soundfile.write(tmp_path / f"speech-{number}.wav", _speech(number, seconds), 8000)
    for name, value in (("STREAM_SECONDS", 5), ("PHONE_SECONDS", 20), ("CLIP_SECONDS", 1), ("TRIAL_STEPS", 6)):
        monkeypatch.setattr(bit_rates, name, value)
    sources = (tmp_path / "speech-1.wav", tmp_path / "speech-2.wav")
    config = BitRatesConfig(sources, "speech-2", tmp_path / "out", minutes=0.02, modes=("700C",), seeds=(0,))
    compare_bit_rates(config)
    with (tmp_path / "out" / "bit-rates.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert (row["mode"], row["seed"]) == ("700C", "0")
    assert float(row["bits_per_second"]) == pytest.approx(25 * float(row["bits_per_frame"]), rel=0.01)
    assert 0 < float(row["mel_distance_of_codec"]) < float(row["mel_distance"])
    assert 0.3 < float(row["phones_kept"]) < 1
    capsys.readouterr()
    compare_bit_rates(config)
    assert capsys.readouterr().out == ""
