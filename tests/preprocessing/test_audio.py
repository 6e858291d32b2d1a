"""Files of every format -> PCM, and the cause for each that can't be used."""

import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
import soxr
from paths import MARGOT, SPEECH

from preprocessing.audio import Recording, open_recording
from preprocessing.containers import BLOCK_VALUES
from preprocessing.kinds import BadRecording, sniff

RECORDING = SPEECH / "allison-01.ogg"
needs_ffmpeg = pytest.mark.skipif(not shutil.which("ffmpeg"), reason="no ffmpeg")


def read(path: Path, gain_db: float = 0.0) -> tuple[np.ndarray, Recording]:
    with open_recording(path, gain_db) as recording:
        return np.concatenate(list(recording.pcm_blocks())), recording


def cause(path: Path) -> str:
    with pytest.raises(BadRecording) as bad:
        read(path)
    return str(bad.value)


def speech_at(rate_hz: int, seconds: float = 12.0) -> np.ndarray:
    """Real speech at any rate, float32 (N,)."""
    values, rate = soundfile.read(RECORDING, dtype="float32", stop=int(seconds * 8000))
    return values if rate_hz == rate else soxr.resample(values, rate, rate_hz)


@pytest.fixture(scope="module")
def wav(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve seconds of stereo speech at 44.1 kHz, the right channel quieter."""
    path = tmp_path_factory.mktemp("audio") / "speech.wav"
    speech = speech_at(44100)
    soundfile.write(path, np.stack([speech, speech / 2], axis=1), 44100)
    return path


def convert(wav: Path, name: str, *options: str) -> Path:
    """Return the speech in another format, converted once."""
    path = wav.with_name(name)
    if not path.exists():
        subprocess.run(["ffmpeg", "-loglevel", "error", "-y", "-i", wav, *options, path], check=True)
    return path


FORMATS = {
    "mp3": ("a.mp3", "MP3"),
    "mp3 without a length": ("b.mp3", "MP3", "-write_xing", "0"),
    "flac": ("a.flac", "FLAC"),
    "vorbis": ("a.ogg", "OGG"),
    "opus": ("a.opus", "OGG"),
    "m4b": ("a.m4b", "MP4", "-c:a", "aac", "-f", "ipod"),
    "aac": ("a.aac", "AAC", "-c:a", "aac"),
    "wav of 24 bits": ("b.wav", "WAV", "-c:a", "pcm_s24le"),
    "wav of floats": ("c.wav", "WAV", "-c:a", "pcm_f32le"),
}


@needs_ffmpeg
@pytest.mark.parametrize(("name", "kind", *("options",)), [(f[0], f[1], f[2:]) for f in FORMATS.values()], ids=FORMATS)
def test_every_format_gives_the_same_speech(wav: Path, name: str, kind: str, options: tuple[str, ...]) -> None:
    pcm, recording = read(convert(wav, name, *options))
    reference, _ = read(wav)
    assert pcm.dtype == np.int16
    assert (recording.kind, recording.channels) == (kind, 2)
    # Lossy formats may start a few hundred values earlier or later.
    assert abs(len(pcm) - len(reference)) < 1200
    middle = reference[30000:40000].astype(float)
    lags = range(-400, 400)
    assert max(np.corrcoef(middle, pcm[30000 + lag : 40000 + lag])[0, 1] for lag in lags) > 0.95


def test_pcm_is_the_resampled_mean_of_the_channels(wav: Path) -> None:
    pcm, recording = read(wav)
    assert (recording.rate_hz, recording.channels) == (44100, 2)
    values, _ = soundfile.read(wav, dtype="float32", always_2d=True)
    whole = soxr.resample(values.mean(axis=1), 44100, 8000) * 32768
    assert len(pcm) == len(whole)
    assert np.abs(pcm - np.clip(whole, -32768, 32767)).max() <= 0.51


@pytest.mark.parametrize("rate_hz", [4000, 8000, 11025, 16000, 22050, 48000, 96000])
@pytest.mark.parametrize("channels", [1, 2, 6])
def test_any_rate_and_number_of_channels_gives_8_khz_mono(tmp_path: Path, rate_hz: int, channels: int) -> None:
    path = tmp_path / "a.wav"
    speech = speech_at(rate_hz, 3)
    soundfile.write(path, np.repeat(speech[:, None], channels, axis=1), rate_hz, subtype="FLOAT")
    pcm, recording = read(path)
    assert abs(len(pcm) - 24000) <= 1
    reference = speech_at(8000, 3) * 32768
    # A rate of 4 kHz lacks the higher frequencies.
    assert np.corrcoef(pcm[:23000], reference[:23000])[0, 1] > (0.9 if rate_hz == 4000 else 0.995)
    assert recording.facts().seconds == pytest.approx(3, abs=0.001)


def test_16_bits_at_8_khz_stay_unchanged(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    values = np.random.default_rng(0).integers(-32768, 32768, 100_000).astype(np.int16)
    soundfile.write(path, values, 8000)
    np.testing.assert_array_equal(read(path)[0], values)


def test_blocks_of_a_long_recording_have_a_maximum_size(tmp_path: Path) -> None:
    path = tmp_path / "a.flac"
    soundfile.write(path, np.tile(speech_at(8000), 10), 8000)
    with open_recording(path) as recording:
        sizes = [len(block) for block in recording.pcm_blocks()]
    assert sum(sizes) == 960_000
    assert max(sizes) == BLOCK_VALUES


def test_an_mp3_decodes_to_the_same_values_every_time(tmp_path: Path) -> None:
    path = tmp_path / "a.mp3"
    soundfile.write(path, speech_at(44100), 44100)
    np.testing.assert_array_equal(read(path)[0], read(path)[0])


@pytest.mark.skipif(not MARGOT.is_dir(), reason="the Margot corpus is not at hand")
def test_a_chapter_from_librivox_is_read_without_output(capfd: pytest.CaptureFixture[str]) -> None:
    pcm, recording = read(MARGOT / "fleursdumal_008_baudelaire_64kb.mp3")
    assert (recording.kind, recording.rate_hz, recording.channels) == ("MP3", 22050, 1)
    assert len(pcm) / 8000 == pytest.approx(69.16, abs=0.01)
    # Other decoders print 123 warnings for this file.
    assert capfd.readouterr().err == ""


def test_the_gain_is_applied_and_clipping_is_counted(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    soundfile.write(path, np.sin(np.arange(16000) / 5) * 0.5, 8000)
    plain, recording = read(path)
    assert recording.facts().peak_dbfs == pytest.approx(-6.0, abs=0.1)
    assert recording.facts().clipped == 0
    louder, recording = read(path, gain_db=6.0)
    assert np.abs(louder - plain * 10 ** (6 / 20)).max() <= 1.5
    clipped, recording = read(path, gain_db=12.0)
    assert clipped.max() == 32767
    assert clipped.min() == -32768
    # A sine of twice full scale is above it for two thirds of the time.
    assert recording.facts().clipped == pytest.approx(2 / 3, abs=0.02)
    assert recording.facts().peak_dbfs == pytest.approx(6.0, abs=0.1)


def test_facts_separate_speech_and_pauses(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    tone = np.sin(np.arange(32000) / 5) * 0.1
    tone[8000:16000] = 0
    soundfile.write(path, tone, 8000)
    _, recording = read(path)
    assert recording.facts().pauses == pytest.approx(0.25, abs=0.01)
    assert recording.facts().speech_dbfs == pytest.approx(-23.0, abs=0.1)


@pytest.mark.parametrize("name", ["a.mp3", "a.flac", "a.wav", "a.ogg", "a.m4b", "a.aac"])
def test_a_file_that_is_not_audio_is_reported_so(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_text("This is the winter of our discontent.\n" * 1000)
    assert cause(path).startswith("not audio")


@pytest.mark.parametrize("name", ["a.mp3", "a.flac", "a.wav", "a.ogg", "a.m4b"])
def test_an_empty_file_is_reported_as_empty(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.touch()
    assert cause(path) == "empty: the file has no bytes"


def test_a_file_without_audio_is_reported_as_empty(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    soundfile.write(path, np.empty(0), 8000)
    assert cause(path) == "empty: it contains no audio"


@needs_ffmpeg
def test_a_video_without_sound_is_not_audio(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    source = ["-f", "lavfi", "-i", "testsrc=size=32x32:duration=1"]
    subprocess.run(["ffmpeg", "-loglevel", "error", *source, path], check=True)
    assert cause(path) == "not audio: it has no audio track"


def test_less_than_a_second_is_too_short(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    soundfile.write(path, speech_at(44100, 0.99), 44100)
    assert cause(path) == "too short: 0.99 s, expected at least 1 s"
    soundfile.write(path, speech_at(44100, 1.0), 44100)
    assert len(read(path)[0]) == 8000


@pytest.mark.parametrize("amplitude", [0.0, 2e-4])
def test_silence_is_reported_as_silent(tmp_path: Path, amplitude: float) -> None:
    path = tmp_path / "a.flac"
    soundfile.write(path, np.random.default_rng(0).normal(0, amplitude, 16000).clip(-9e-4, 9e-4), 8000)
    assert cause(path).startswith("silent: its peak is -")
    if amplitude:
        # A gain makes a very quiet recording usable.
        assert len(read(path, gain_db=40.0)[0]) == 16000


@pytest.mark.parametrize("left", [1.0, 0.5])
def test_of_channels_that_cancel_each_other_the_louder_one_is_taken(tmp_path: Path, left: float) -> None:
    path = tmp_path / "a.wav"
    speech = speech_at(8000, 3)
    soundfile.write(path, np.stack([left * speech, -0.9 * speech], axis=1), 8000, subtype="FLOAT")
    pcm, recording = read(path)
    expected = left * speech if left > 0.9 else -0.9 * speech
    np.testing.assert_allclose(pcm, expected * 32768, atol=0.51)
    assert recording.warnings == ["its channels cancel each other for 3.0 s; there, one of them was used"]


@needs_ffmpeg
def test_speech_in_the_centre_of_5_1_is_kept(tmp_path: Path) -> None:
    speech = speech_at(44100, 4)
    channels = np.zeros((len(speech), 6), np.float32)
    channels[:, 2] = speech
    soundfile.write(tmp_path / "a.wav", channels, 44100)
    subprocess.run(["ffmpeg", "-loglevel", "error", "-i", tmp_path / "a.wav", tmp_path / "a.m4a"], check=True)
    for name in ("a.wav", "a.m4a"):
        pcm, recording = read(tmp_path / name)
        assert recording.channels == 6
        level = np.std(pcm[:31000]) / np.std(speech_at(8000, 4)[:31000] * 32768)
        assert level == pytest.approx(0.29, abs=0.02)


def test_three_channels_without_names_are_all_used(tmp_path: Path) -> None:
    channels = np.zeros((24000, 3), np.float32)
    channels[:, 2] = speech_at(8000, 3)
    soundfile.write(tmp_path / "a.wav", channels, 8000)
    assert np.abs(read(tmp_path / "a.wav")[0] - channels[:, 2] * 32768 / 3).max() < 1.5


@pytest.mark.parametrize("full_scale", [2**15, 2**23, 2**31])
def test_float_values_on_an_integers_scale_are_divided_by_it(tmp_path: Path, full_scale: int) -> None:
    speech = speech_at(8000, 3)
    soundfile.write(tmp_path / "a.wav", speech * full_scale, 8000, subtype="FLOAT")
    pcm, recording = read(tmp_path / "a.wav")
    np.testing.assert_allclose(pcm, speech * 32768, atol=0.51)
    assert recording.warnings == [
        f"its float values are on a scale of {full_scale:,}, not of 1; they were divided by that"
    ]


@pytest.mark.parametrize("subtype", ["PCM_16", "FLOAT"])
def test_clipping_is_a_warning(tmp_path: Path, subtype: str) -> None:
    """In a file of 16 bits the clipped values lie at full scale; floats go beyond it."""
    louder = speech_at(8000, 3) * 8
    soundfile.write(tmp_path / "a.wav", louder, 8000, subtype=subtype)
    pcm, recording = read(tmp_path / "a.wav")
    assert len(pcm) == 24000
    share = float((np.abs(louder) >= 1).mean())
    assert recording.facts().clipped == pytest.approx(share, abs=0.001)
    assert recording.warnings == [
        f"{recording.facts().clipped:.1%} of its values are clipped; use the original, or less --gain-db"
    ]
    assert not read(RECORDING)[1].warnings


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("subtype", ["FLOAT", "DOUBLE"])
def test_nan_and_infinite_values_are_found(tmp_path: Path, value: float, subtype: str) -> None:
    path = tmp_path / "a.wav"
    speech = speech_at(8000).copy()
    speech[80_000] = value
    soundfile.write(path, speech, 8000, subtype=subtype)
    assert cause(path) == "NaN or infinite values after 8.2 s"


@needs_ffmpeg
@pytest.mark.parametrize("part", [0.3, 0.6, 0.93])
@pytest.mark.parametrize(("name", "options"), [(f[0], f[2:]) for f in FORMATS.values()], ids=FORMATS)
def test_a_cut_file_is_reported_as_truncated(
    wav: Path, tmp_path: Path, name: str, options: tuple[str, ...], part: float
) -> None:
    whole = convert(wav, name, *options).read_bytes()
    path = tmp_path / name
    path.write_bytes(whole[: int(len(whole) * part) + 13])
    if name == "b.mp3":
        # An MP3 without a length in its first frame can't be recognized as truncated.
        assert len(read(path)[0]) / 8000 == pytest.approx(12 * part, abs=0.5)
    else:
        assert "truncated" in cause(path)


@needs_ffmpeg
def test_a_cut_m4b_with_its_index_in_front_is_reported_as_truncated(wav: Path, tmp_path: Path) -> None:
    whole = convert(wav, "fast.m4b", "-c:a", "aac", "-f", "ipod", "-movflags", "+faststart").read_bytes()
    path = tmp_path / "a.m4b"
    path.write_bytes(whole[: int(len(whole) * 0.6)])
    assert "truncated" in cause(path)


@needs_ffmpeg
@pytest.mark.parametrize("suffix", ["wav", "flac"])
def test_a_file_written_to_a_pipe_is_read_to_its_end(wav: Path, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    command = ["ffmpeg", "-loglevel", "error", "-i", wav, "-f", suffix, "-"]
    path.write_bytes(subprocess.run(command, capture_output=True, check=True).stdout)
    pcm, reference = read(path)[0], read(wav)[0]
    assert len(pcm) == len(reference)
    assert np.abs(pcm - reference.astype(int)).max() <= 1


@needs_ffmpeg
def test_damage_in_the_middle_is_found(wav: Path, tmp_path: Path) -> None:
    for name in ("a.mp3", "a.flac"):
        data = bytearray(convert(wav, name).read_bytes())
        data[len(data) // 3 : len(data) // 2] = bytes(len(data) // 2 - len(data) // 3)
        path = tmp_path / name
        path.write_bytes(data)
        assert "truncated" in cause(path)


@needs_ffmpeg
@pytest.mark.parametrize(
    ("inside", "outside"),
    [("flac", "mp3"), ("mp3", "wav"), ("wav", "flac"), ("ogg", ""), ("m4b", "mp3"), ("mp3", "mpga"), ("aac", "mp3")],
)
def test_the_content_decides_and_not_the_suffix(wav: Path, tmp_path: Path, inside: str, outside: str) -> None:
    options = ["-f", "ipod"] if inside == "m4b" else []
    path = tmp_path / f"a.{outside}"
    shutil.copy(convert(wav, f"inside.{inside}", *options), path)
    pcm, recording = read(path)
    assert recording.kind == {"m4b": "MP4"}.get(inside, inside.upper())
    assert len(pcm) / 8000 == pytest.approx(12, abs=0.1)


def test_an_id3_tag_is_skipped(tmp_path: Path) -> None:
    tag = b"ID3\x04\x00\x00\x00\x00\x02\x00" + bytes(256)
    mp3, flac = tmp_path / "a.mp3", tmp_path / "a.flac"
    soundfile.write(mp3, speech_at(44100), 44100)
    plain = read(mp3)[0]
    mp3.write_bytes(tag + mp3.read_bytes())
    np.testing.assert_array_equal(read(mp3)[0], plain)
    soundfile.write(flac, speech_at(8000), 8000)
    (tmp_path / "b.mp3").write_bytes(tag + flac.read_bytes())
    assert read(tmp_path / "b.mp3")[1].kind == "FLAC"


APE_TAG = b"APETAGEX" + struct.pack("<IIII8x", 2000, 88, 1, 0x80000000) + bytes(56)
BETWEEN = {
    "nothing": b"",
    "ID3v1": b"TAG" + bytes(125),
    "ID3v2": b"ID3\x04\x00\x00\x00\x00\x10\x00" + bytes(2048),
    "APE": APE_TAG,
    "zeros": bytes(5000),
}


@needs_ffmpeg
@pytest.mark.parametrize("between", BETWEEN.values(), ids=BETWEEN)
@pytest.mark.parametrize("options", [("-ar", "44100", "-ac", "2"), ("-ar", "22050", "-ac", "1")], ids=["same", "other"])
@pytest.mark.parametrize("suffix", ["mp3", "aac"])
def test_joined_files_are_read_to_the_end(
    wav: Path, tmp_path: Path, suffix: str, options: tuple[str, ...], between: bytes
) -> None:
    first = convert(wav, f"first.{suffix}").read_bytes()
    second = convert(wav, f"second-{options[1]}.{suffix}", *options).read_bytes()
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(first + between + second)
    pcm, _ = read(path)
    assert len(pcm) / 8000 == pytest.approx(24, abs=0.3)
    _assert_same_speech(pcm[: 12 * 8000], read(wav)[0])
    _assert_same_speech(pcm[-12 * 8000 :], read(wav)[0])


@needs_ffmpeg
@pytest.mark.parametrize("name", ["part.mp3", "part.ogg"])
def test_a_hundred_joined_files_are_read_to_the_end(wav: Path, tmp_path: Path, name: str) -> None:
    part = convert(wav, name)
    path = tmp_path / name
    path.write_bytes(part.read_bytes() * 100)
    assert len(read(path)[0]) / 8000 == pytest.approx(100 * len(read(part)[0]) / 8000, rel=0.01)


@needs_ffmpeg
@pytest.mark.parametrize("same_serial", [True, False])
@pytest.mark.parametrize(
    ("suffix", "first", "second"),
    [
        ("ogg", ("-ar", "22050"), ("-ar", "22050")),
        ("ogg", ("-ar", "22050"), ("-ar", "44100")),
        ("opus", (), ()),
        ("oga", ("-c:a", "flac"), ("-c:a", "flac")),
    ],
)
def test_chained_ogg_is_read_to_the_end(
    wav: Path, tmp_path: Path, suffix: str, first: tuple[str, ...], second: tuple[str, ...], same_serial: bool
) -> None:
    parts = []
    # Serials that increase, decrease, and return.
    for number, (serial, options) in enumerate([(7, first), (7 if same_serial else 3, second), (7, first)]):
        part = tmp_path / f"{number}.{suffix}"
        command = ["ffmpeg", "-loglevel", "error", "-i", wav, "-map_metadata", "-1", *options]
        subprocess.run([*command, "-serial_offset", str(serial), part], check=True)
        parts.append(part.read_bytes())
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(b"".join(parts))
    pcm, _ = read(path)
    assert len(pcm) / 8000 == pytest.approx(36, abs=0.3)
    for start in (0, 12, 24):
        _assert_same_speech(pcm[start * 8000 :][: 12 * 8000], read(wav)[0])


@needs_ffmpeg
def test_an_ogg_with_a_video_track_is_read(wav: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.ogg"
    video = ["-f", "lavfi", "-i", "testsrc=size=64x64:rate=5:duration=12"]
    subprocess.run(
        ["ffmpeg", "-loglevel", "error", *video, "-i", wav, "-c:v", "libtheora", "-c:a", "libvorbis", path], check=True
    )
    pcm, recording = read(path)
    assert recording.kind == "OGG"
    _assert_same_speech(pcm, read(wav)[0])


@needs_ffmpeg
def test_of_several_audio_tracks_the_first_is_read_with_a_warning(wav: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.m4a"
    tracks = ["-i", wav, "-i", wav, "-map", "0", "-map", "1", "-c:a", "aac"]
    subprocess.run(["ffmpeg", "-loglevel", "error", *tracks, path], check=True)
    pcm, recording = read(path)
    assert len(pcm) / 8000 == pytest.approx(12, abs=0.1)
    assert recording.warnings == ["it has 2 audio tracks; the first was read"]


@needs_ffmpeg
@pytest.mark.parametrize("suffix", ["wav", "m4b"])
def test_joined_files_that_can_not_be_read_are_refused(wav: Path, tmp_path: Path, suffix: str) -> None:
    options = ["-f", "ipod"] if suffix == "m4b" else []
    data = convert(wav, f"part.{suffix}", *options).read_bytes()
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(data + data)
    assert cause(path).startswith("several ")


def _assert_same_speech(pcm: np.ndarray, reference: np.ndarray) -> None:
    """Compare a second in the middle of twelve, whose position may differ by 0.1 s."""
    middle = reference[40000:48000].astype(float)
    correlations = np.correlate(pcm[39200:48800].astype(float), middle) / (np.linalg.norm(middle) ** 2)
    assert correlations.max() > 0.9


@needs_ffmpeg
@pytest.mark.parametrize("xing", ["none", "3 s of 12", "no bytes"])
def test_an_mp3_is_read_to_the_end_whatever_its_xing_header_says(wav: Path, tmp_path: Path, xing: str) -> None:
    data = bytearray(convert(wav, "vbr.mp3", "-q:a", "5", "-write_xing", "0" if xing == "none" else "1").read_bytes())
    if xing != "none":
        at = max(data.find(b"Xing"), data.find(b"Info"))
        start, value = (at + 8, 115) if xing == "3 s of 12" else (at + 12, 0)
        data[start : start + 4] = value.to_bytes(4, "big")
    path = tmp_path / "a.mp3"
    path.write_bytes(data)
    pcm, _ = read(path)
    assert len(pcm) / 8000 == pytest.approx(12, abs=0.1)
    _assert_same_speech(pcm, read(wav)[0])
    path.write_bytes(bytes(range(256)) * 300 + data)
    assert len(read(path)[0]) / 8000 == pytest.approx(12, abs=0.2)


def _write_wav(
    path: Path, length: int, audio: bytes, after: bytes = b"", tag: bytes = b"RIFF", extra: bytes = b""
) -> Path:
    """Write a WAV, 8 kHz, mono, 16 bits, with any length in its header."""
    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, 8000, 16000, 2, 16)
    body = b"WAVE" + extra + form + struct.pack("<4sI", b"data", length) + audio + after
    path.write_bytes(tag + struct.pack("<I", len(body) & 0xFFFFFFFF) + body)
    return path


@pytest.mark.parametrize("length", [0, 0x7FFFF000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 40_000])
def test_a_wav_is_read_to_the_end_whatever_its_length_says(tmp_path: Path, length: int) -> None:
    """Lengths of sox and arecord in a pipe, of FFmpeg, and one that was cut to 32 bits."""
    audio = (speech_at(8000, 10) * 32767).astype("<i2")
    pcm, recording = read(_write_wav(tmp_path / "a.wav", length, audio.tobytes()))
    np.testing.assert_array_equal(pcm, audio)
    assert bool(recording.warnings) == (length == 40_000)


def test_other_chunks_after_the_audio_of_a_wav_are_not_audio(tmp_path: Path) -> None:
    audio = (speech_at(8000, 3) * 32767).astype("<i2")
    listed = struct.pack("<4sI", b"LIST", 6000) + bytes(6000) + struct.pack("<4sI", b"id3 ", 3) + b"abc\0"
    for after in (listed, b"TAG" + bytes(125)):
        pcm, _ = read(_write_wav(tmp_path / "a.wav", 2 * len(audio), audio.tobytes(), after))
        np.testing.assert_array_equal(pcm, audio)


def test_a_cut_rf64_is_truncated(tmp_path: Path) -> None:
    audio = (speech_at(8000, 3) * 32767).astype("<i2").tobytes()
    for length, is_whole in ((len(audio), True), (2 * len(audio), False)):
        ds64 = struct.pack("<4sIQQQI", b"ds64", 28, 0, length, 0, 0)
        path = _write_wav(tmp_path / "a.wav", 0xFFFFFFFF, audio, tag=b"RF64", extra=ds64)
        if is_whole:
            assert len(read(path)[0]) == 24000
        else:
            assert cause(path) == "truncated: 48,000 bytes are missing according to its header"


def test_a_damaged_packet_is_left_out_with_a_warning(tmp_path: Path) -> None:
    path = tmp_path / "a.flac"
    soundfile.write(path, speech_at(44100), 44100)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    pcm, recording = read(path)
    assert 12 * 8000 - 1600 < len(pcm) < 12 * 8000 - 400
    assert len(recording.warnings) == 1
    assert recording.warnings[0].endswith(" s of 12.0 s can't be decoded and are left out")


@pytest.mark.parametrize(("num_damaged", "outcome"), [(1, "whole"), (8, "warning"), (16, "damaged")])
def test_a_short_damage_is_left_out_and_a_longer_one_refuses_the_recording(
    num_damaged: int, outcome: str, tmp_path: Path
) -> None:
    wav = tmp_path / "a.wav"
    soundfile.write(wav, speech_at(44100), 44100)
    path = convert(wav, "a.aac", "-c:a", "aac")
    with av.open(path) as container:
        packets = [bytes(packet) for packet in container.demux() if packet.size]
    for n in range(100, 100 + num_damaged):
        # Behind the header of 7 bytes, which gives the length.
        packets[n] = packets[n][:7] + b"\xff" * (len(packets[n]) - 7)
    path.write_bytes(b"".join(packets))
    if outcome == "damaged":
        assert "can't be decoded" in cause(path)
    else:
        pcm, recording = read(path)
        assert len(pcm) == pytest.approx(8000 * (12 - num_damaged * 1024 / 44100), abs=1000)
        warning = f"damaged: {num_damaged * 1024 / 44100:.2f} s of it can't be decoded and are left out"
        assert recording.warnings == ([warning] if outcome == "warning" else [])


def test_a_tag_at_the_end_of_a_flac_is_not_audio(tmp_path: Path) -> None:
    path = tmp_path / "a.flac"
    soundfile.write(path, speech_at(8000), 8000)
    plain = read(path)[0]
    path.write_bytes(path.read_bytes() + b"TAG" + bytes(125))
    np.testing.assert_array_equal(read(path)[0], plain)


def test_a_missing_file_is_unreadable(tmp_path: Path) -> None:
    assert cause(tmp_path / "a.mp3") == "unreadable: No such file or directory"


def test_a_file_without_permission_is_unreadable(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    soundfile.write(path, speech_at(8000), 8000)
    path.chmod(0)
    code = (
        "import os, sys; from pathlib import Path; from preprocessing.audio import *\n"
        "if os.geteuid() == 0: os.seteuid(65534)\n"
        "try:\n  with open_recording(Path(sys.argv[1])): print('it was read')\n"
        "except BadRecording as bad: print(bad)"
    )
    for folder in (tmp_path, *tmp_path.parents[:2]):
        os.chmod(folder, 0o755)
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "unreadable: Permission denied"


def test_a_file_whose_name_is_not_utf_8_is_read(tmp_path: Path) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.wav"))
    shutil.copy(_write_short(tmp_path), path)
    assert len(read(path)[0]) == 24000


def _write_short(folder: Path) -> Path:
    path = folder / "short.wav"
    soundfile.write(path, speech_at(8000, 3), 8000)
    return path


@pytest.mark.parametrize(
    ("head", "kind"),
    [
        (b"\xff\xfb\x90\x00", "MP3"),
        (b"\xff\xf3\x40\xc0", "MP3"),
        (b"\xff\xf1\x50\x80", "AAC"),
        (b"\xff\xf9\x50\x80", "AAC"),
        (b"\xff\xfe\x41\x00", "MP3"),
        (b"\xff\xd8\xff\xe0", None),
        (b"RIFF\x00\x00\x00\x00AVI ", None),
        (b"\xc0\xde\xc2\x01", "Codec 2"),
        (b"", None),
    ],
)
def test_the_kind_follows_from_the_first_bytes(head: bytes, kind: str | None) -> None:
    assert sniff(head) == kind
