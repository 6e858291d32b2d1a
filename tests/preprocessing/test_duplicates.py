"""Which recordings hold the same speech: equal frames, copies at another bit rate, level or start, and no others."""

import io
from functools import cache

import numpy as np
import pytest
import soundfile
from paths import SPEECH

from babble.codec.codec2 import encode_pcm
from babble.codec.frames import MODES, get_mode, unpack_packets
from preprocessing.duplicates import (
    BLOCK,
    Landmarks,
    contours,
    correlate_blocks,
    find_candidates,
    find_duplicates,
    find_landmarks,
    measure_overlap,
)

M1300 = get_mode("1300")


@cache
def read_pcm(number: int) -> np.ndarray:
    values, _ = soundfile.read(SPEECH / f"allison-{number:02d}.ogg", dtype="int16", stop=130 * 8000)
    return values


def speech(number: int, start: float, stop: float) -> np.ndarray:
    return read_pcm(number)[round(start * 8000) : round(stop * 8000)]


def encode(pcm: np.ndarray, mode: str = "1300") -> np.ndarray:
    return unpack_packets(encode_pcm(np.ascontiguousarray(pcm), MODES[mode]), MODES[mode])


def copy_pcm(pcm: np.ndarray, lead_seconds: float = 0.0, gain_db: float = 0.0) -> np.ndarray:
    """The same audio through MP3 at a low bit rate, later and at another level."""
    file = io.BytesIO()
    later = np.concatenate([np.zeros(round(lead_seconds * 8000)), pcm / 32768 * 10 ** (gain_db / 20)])
    soundfile.write(file, later, 8000, format="MP3", compression_level=0.9)
    file.seek(0)
    return (soundfile.read(file)[0] * 32767).astype(np.int16)


def pairs(recordings: dict[str, np.ndarray], mode: str = "1300", **named: tuple[str, ...]) -> dict[str, str]:
    return {d.name: d.of for d in find_duplicates(recordings, MODES[mode], **named) if d.is_left_out}


@pytest.mark.parametrize("mode", MODES)
def test_equal_frames_are_duplicates_of_the_first_in_every_mode(mode: str) -> None:
    first, other = encode(speech(1, 0, 3), mode), encode(speech(2, 0, 3), mode)
    assert pairs({"b": first, "other": other, "a": first.copy(), "c": first.copy()}, mode) == {"a": "b", "c": "b"}


# In 1200 voicing is the only contour; fewer copies are found.
@pytest.mark.parametrize("mode", [mode for mode in MODES if mode != "1200"])
def test_a_copy_at_another_bit_rate_level_and_start_is_a_duplicate(mode: str) -> None:
    pcm = speech(1, 0, 40)
    recordings = {"a": encode(pcm, mode), "b": encode(speech(2, 0, 40), mode)}
    recordings["a_64kb"] = encode(copy_pcm(pcm[2 * 8000 :], 0.513, -6), mode)
    (duplicate,) = find_duplicates(recordings, MODES[mode])
    assert (duplicate.name, duplicate.of, duplicate.is_left_out) == ("a_64kb", "a", True)
    assert duplicate.share > 0.8
    assert duplicate.seconds == pytest.approx(38, abs=6)


def test_a_copy_is_found_by_voicing_alone() -> None:
    pcm = speech(5, 0, 40)
    assert pairs({"a": encode(pcm, "1200"), "b": encode(copy_pcm(pcm), "1200")}, "1200") == {"b": "a"}


@pytest.mark.parametrize("offset_seconds", [0.0, 0.013, 0.02, 0.5, 7.0])
def test_a_short_copy_is_found_at_any_start(offset_seconds: float) -> None:
    pcm = speech(3, 10, 40)
    recordings = {"a": encode(pcm), "b": encode(copy_pcm(pcm[round(offset_seconds * 8000) :]))}
    assert pairs(recordings) == {"b": "a"}


def test_other_speech_of_the_same_voice_silence_and_hum_are_no_duplicates() -> None:
    t = np.arange(20 * 8000) / 8000
    rng = np.random.default_rng(0)
    recordings = {
        f"{number} at {start}": encode(speech(number, start, start + 20)) for number in (1, 2) for start in (0, 20)
    }
    for number in (1, 2):
        noise = rng.normal(0, 20, len(t))
        recordings[f"hum {number}"] = encode((3000 * np.sin(2 * np.pi * 150 * t) + noise).astype(np.int16))
        # Of the same length, digital silence is equal.
        recordings[f"silence {number}"] = encode(np.zeros((20 + number) * 8000, np.int16))
        recordings[f"noise {number}"] = encode(noise.astype(np.int16))
    assert find_duplicates(recordings, M1300) == []


def test_chapters_are_duplicates_of_the_whole_book_unless_they_are_named() -> None:
    chapters = {f"chapter-{i}": speech(4, 30 * i, 30 * i + 30) for i in range(3)}
    recordings = {name: encode(copy_pcm(pcm)) for name, pcm in chapters.items()}
    recordings["whole"] = encode(np.concatenate(list(chapters.values())))
    assert pairs(recordings) == dict.fromkeys(chapters, "whole")
    # Without the whole, the other chapters repeat nothing.
    assert pairs(recordings, named=("chapter-1",)) == {"whole": "chapter-1"}


def test_of_several_copies_one_is_kept() -> None:
    pcm = speech(5, 0, 30)
    # The second is 0.3 s longer than the first, which an encoder may add.
    recordings = {"b": encode(pcm), "a": encode(copy_pcm(pcm, 0.3)), "c": encode(copy_pcm(pcm, 0.1, -3))}
    recordings["d"] = recordings["c"].copy()
    assert pairs(recordings) == dict.fromkeys("acd", "b")
    assert pairs(recordings, named=("d",)) == dict.fromkeys("abc", "d")


def test_a_shared_intro_is_reported_and_nothing_is_left_out() -> None:
    intro = speech(6, 0, 36)
    recordings = {
        "one": encode(np.concatenate([intro, speech(7, 0, 60)])),
        "two": encode(np.concatenate([speech(8, 0, 2.53), copy_pcm(intro), speech(8, 2.53, 70)])),
        "other": encode(speech(5, 0, 90)),
    }
    (duplicate,) = find_duplicates(recordings, M1300)
    assert {duplicate.name, duplicate.of} == {"one", "two"}
    assert not duplicate.is_left_out
    assert duplicate.seconds == pytest.approx(36, abs=5)


def test_a_copy_with_a_cut_in_the_middle_is_a_duplicate() -> None:
    pcm = speech(7, 0, 60)
    cut = np.concatenate([pcm[: 25 * 8000], pcm[33 * 8000 + 77 :]])
    (duplicate,) = find_duplicates({"a": encode(pcm), "b": encode(copy_pcm(cut))}, M1300)
    assert (duplicate.name, duplicate.of) == ("b", "a")
    assert duplicate.share > 0.9


def test_block_correlation_is_that_of_numpy() -> None:
    first, second = (contours(encode(speech(number, 0, 20)), M1300)[:450] for number in (1, 2))
    starts = np.array([0, 130, 350])
    for start, found in zip(starts, correlate_blocks(first, second, starts, BLOCK), strict=True):
        changes = [x[start + 2 : start + BLOCK] - x[start : start + BLOCK - 2] for x in (first, second)]
        x, y = (change - change.mean(axis=0) for change in changes)
        assert found == pytest.approx(np.corrcoef(x.ravel(), y.ravel())[0, 1], abs=1e-5)
    assert correlate_blocks(first, first, starts, BLOCK) == pytest.approx(1.0)
    assert measure_overlap(first, first[100:], [100]) == pytest.approx(350 / 25)


def test_candidates_are_those_of_a_loop_over_all_landmarks() -> None:
    rng = np.random.default_rng(0)
    landmarks = [
        Landmarks(
            rng.integers(0, 300, 60).astype(np.uint32),
            rng.integers(0, 16, 60).astype(np.uint64),
            rng.integers(0, 40, 60),
        )
        for _ in range(4)
    ]
    votes: dict[tuple[int, int], list[int]] = {}
    for i, first in enumerate(landmarks):
        for j, second in enumerate(landmarks[i + 1 :], i + 1):
            for m in range(60):
                for n in range(60):
                    errors = int(first.checks[m] ^ second.checks[n]).bit_count()
                    if first.keys[m] == second.keys[n] and errors <= 1:
                        votes.setdefault((i, j), []).append(int(first.positions[m] - second.positions[n]))
    found = find_candidates(landmarks)
    assert found
    for pair, offsets in votes.items():
        near = {offset: sum(abs(offset - other) <= 1 for other in offsets) for offset in offsets}
        assert all(near[offset] == total for offset, total in found.get(pair, {}).items())
        assert not near or max(near.values()) < 2 or pair in found


def test_contours_have_25_values_per_second_and_no_landmarks_in_a_moment() -> None:
    for name, mode in MODES.items():
        values = contours(encode(speech(1, 0, 4), name), mode)
        assert values.shape[0] == 100
        assert len(contours(encode(speech(1, 0, 1), name), mode)) == 25
        assert len(find_landmarks(values[:63]).keys) == 0
        assert len(contours(np.zeros((0, mode.num_fields), mode.dtype), mode)) == 0
