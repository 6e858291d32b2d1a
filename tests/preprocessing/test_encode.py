"""Encoding in chunks, compared with encoding the whole recording."""

from fractions import Fraction

import numpy as np
import pytest
import soxr
from paths import SPEECH

from babble.codec.codec2 import encode_pcm
from babble.codec.frames import MODES, Mode, get_mode, pitch_hz, unpack_packets
from preprocessing.audio import open_recording
from preprocessing.encode import Chunk, cut_chunks, encode_chunk, encode_recording, list_encodings

RECORDING = SPEECH / "allison-01.ogg"
LOCAL = [mode for mode in MODES.values() if mode.is_encoding_local]
PREDICTIVE = [mode for mode in MODES.values() if not mode.is_encoding_local]


@pytest.fixture(scope="module")
def speech() -> np.ndarray:
    """Forty seconds of real speech, int16 at 8 kHz, whose last frame is incomplete."""
    with open_recording(RECORDING) as recording:
        return np.concatenate(list(recording.pcm_blocks()))[: 40 * 8000 + 77]


def split_blocks(pcm: np.ndarray, size: int) -> list[np.ndarray]:
    return [pcm[start : start + size] for start in range(0, len(pcm), size)]


@pytest.mark.parametrize("mode", LOCAL, ids=lambda mode: mode.name)
@pytest.mark.parametrize("chunk_seconds", [1, 7, 20, 60])
def test_chunks_give_the_packets_of_the_whole_recording(mode: Mode, chunk_seconds: int, speech: np.ndarray) -> None:
    chunks = encode_recording(split_blocks(speech, 30_011), mode, chunk_seconds * mode.frames_per_second)
    assert chunks == encode_pcm(speech, mode)


@pytest.mark.parametrize("mode", LOCAL, ids=lambda mode: mode.name)
def test_chunks_without_warm_up_differ(mode: Mode, speech: np.ndarray) -> None:
    step = 7 * mode.frames_per_second * mode.pcm_per_frame
    cold = b"".join(encode_pcm(chunk, mode) for chunk in split_blocks(speech, step))
    assert len(cold) == len(encode_pcm(speech, mode))
    assert cold != encode_pcm(speech, mode)


@pytest.mark.parametrize("mode", PREDICTIVE, ids=lambda mode: mode.name)
def test_chunks_of_predictive_modes_give_nearly_the_same_frames(mode: Mode, speech: np.ndarray) -> None:
    warmup_seconds = mode.warmup_frames // mode.frames_per_second
    pcm = np.tile(speech[: 40 * 8000], 1 + warmup_seconds // 40)
    whole = unpack_packets(encode_pcm(pcm, mode), mode)
    chunks = unpack_packets(encode_recording([pcm], mode, mode.warmup_frames + 50), mode)
    assert chunks.shape == whole.shape
    assert (chunks == whole).mean() > 0.999


@pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
@pytest.mark.parametrize("block", [1, 319, 320, 65536, 10**7])
def test_chunks_do_not_depend_on_the_size_of_blocks(mode: Mode, block: int, speech: np.ndarray) -> None:
    pcm = speech[: 8000 * 4 + 77]
    expected = list(cut_chunks([pcm], mode, 30))
    found = list(cut_chunks(split_blocks(pcm, block), mode, 30))
    for one, other in zip(expected, found, strict=True):
        assert (one.index, one.warmup_frames) == (other.index, other.warmup_frames)
        np.testing.assert_array_equal(one.pcm, other.pcm)


@pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
def test_chunks_cover_every_whole_frame_once(mode: Mode, speech: np.ndarray) -> None:
    step = mode.pcm_per_frame
    position = 0
    for number, chunk in enumerate(cut_chunks(split_blocks(speech, 5000), mode, 100)):
        assert (chunk.index, chunk.first_frame) == (number, 100 * number)
        assert chunk.warmup_frames == min(mode.warmup_frames, 100 * number)
        new = chunk.pcm[chunk.warmup_frames * step :]
        assert len(new) in (100 * step, len(speech) // step % 100 * step)
        np.testing.assert_array_equal(new, speech[position : position + len(new)])
        np.testing.assert_array_equal(
            chunk.pcm[: chunk.warmup_frames * step], speech[position - len(chunk.pcm) + len(new) : position]
        )
        position += len(new)
    assert position == len(speech) // step * step


def test_a_recording_of_whole_chunks_does_not_end_with_an_empty_one() -> None:
    mode = get_mode("1300")
    chunks = list(cut_chunks([np.zeros(320 * 20, np.int16)], mode, 10))
    assert [len(chunk.pcm) // 320 - chunk.warmup_frames for chunk in chunks] == [10, 10]
    assert list(cut_chunks([], mode, 10)) == []
    assert list(cut_chunks([np.zeros(319, np.int16)], mode, 10)) == []


def test_chunks_can_be_kept_while_later_ones_are_cut(speech: np.ndarray) -> None:
    mode = get_mode("1300")
    first = next(iter(cut_chunks([speech], mode, 100))).pcm.copy()
    kept = list(cut_chunks([speech], mode, 100))
    np.testing.assert_array_equal(kept[0].pcm, first)


def test_a_read_only_chunk_as_ray_returns_it_is_encoded(speech: np.ndarray) -> None:
    mode = get_mode("1300")
    pcm = speech[: 320 * 50].copy()
    pcm.flags.writeable = False
    assert encode_chunk(Chunk(1, 50, 8, pcm), mode) == [encode_pcm(pcm, mode)[8 * 7 :]]


@pytest.mark.parametrize("shifts", [2, 4])
@pytest.mark.parametrize("mode", LOCAL, ids=lambda mode: mode.name)
def test_shifted_chunks_give_the_packets_of_later_speech(mode: Mode, shifts: int, speech: np.ndarray) -> None:
    chunks = list(cut_chunks([speech], mode, 7 * mode.frames_per_second))
    encoded = [encode_chunk(chunk, mode, list_encodings(shifts, (1,))) for chunk in chunks]
    whole = speech[: len(speech) // mode.pcm_per_frame * mode.pcm_per_frame]
    for k in range(shifts):
        later = mode.pcm_per_frame * (shifts - k) // shifts if k else 0
        assert b"".join(packets[k] for packets in encoded) == encode_pcm(whole[later:], mode)
    frames = [unpack_packets(b"".join(packets[k] for packets in encoded), mode) for k in range(shifts)]
    assert (frames[0][1:] != frames[1]).mean() > 0.2


@pytest.mark.parametrize("mode", LOCAL, ids=lambda mode: mode.name)
@pytest.mark.parametrize("speed", [0.96, 1.04, 1.25])
def test_chunks_at_another_speed_give_the_frames_of_the_resampled_recording(
    mode: Mode, speed: float, speech: np.ndarray
) -> None:
    encodings = list_encodings(2, (speed,))
    chunks = list(cut_chunks([speech], mode, 7 * mode.frames_per_second))
    encoded = [encode_chunk(chunk, mode, encodings) for chunk in chunks]
    played = soxr.resample(speech[: len(speech) // mode.pcm_per_frame * mode.pcm_per_frame], speed, 1.0)
    for k, later in ((2, 0), (3, mode.pcm_per_frame // 2)):
        frames = unpack_packets(b"".join(packets[k] for packets in encoded), mode)
        expected = unpack_packets(encode_pcm(played[later:], mode), mode)
        assert abs(len(frames) - len(expected)) <= 1
        # Each chunk is resampled alone, from the nearest sample.
        same = frames[: len(expected)] == expected[: len(frames)]
        assert same.mean() > 0.9


@pytest.mark.parametrize("speed", [0.9, 1.1])
def test_speed_changes_pitch_and_length(speed: float, speech: np.ndarray) -> None:
    mode = get_mode("1300")
    (chunk,) = cut_chunks([speech], mode, 10_000)
    frames, played = (unpack_packets(each, mode) for each in encode_chunk(chunk, mode, list_encodings(1, (speed,))))
    assert len(played) == int(len(frames) / speed)
    pitches = [np.median(pitch_hz(each, mode)[each[:, :4].all(axis=1)]) for each in (frames, played)]
    assert pitches[1] / pitches[0] == pytest.approx(speed, rel=0.03)


def test_the_frames_of_each_encoding_within_a_span() -> None:
    plain, shifted, fast, fast_shifted = list_encodings(2, (1.25,))
    assert [encoding.name for encoding in (plain, shifted, fast, fast_shifted)] == [
        "",
        "shift 1",
        "speed 1.25",
        "speed 1.25, shift 1",
    ]
    assert (shifted.offset, fast_shifted.offset) == (Fraction(1, 2), Fraction(5, 8))
    # Frames 10 to 19: all ten; nine between them; 8 x 1.25 = 10 to 16 x 1.25 = 20; 8 x 1.25 + 0.625 to 19.375.
    spans = [(each.first_from(10), each.count_until(20)) for each in (plain, shifted, fast, fast_shifted)]
    assert spans == [(10, 20), (10, 19), (8, 16), (8, 15)]
