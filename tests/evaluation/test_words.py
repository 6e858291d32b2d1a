"""The measure of words: spelling by a tiny recogniser, scores by hand, and a real recogniser if at hand."""

import math
from pathlib import Path

import numpy as np
import pytest
from paths import ROOT
from speech_samples import RATE, random_frames, read_tale

from babble.evaluation.references import MIN_JUMP_FRAMES, QUILT_FRAMES, sample_quilt
from babble.evaluation.tables import _format_words
from babble.evaluation.words import LETTERS, QUILT, Recogniser, Spelling, _resample, measure_words

WORDS = ROOT.parent / "shared/words"


def _frames(text: str) -> np.ndarray:
    frames = np.zeros((len(text), 16), np.uint8)
    frames[:, 5] = [LETTERS.index(letter) for letter in text]
    return frames


def test_letters_are_merged_to_words_with_their_times(recogniser: Path):
    words = Recogniser.load(recogniser).spell(_frames("__mm_iss_ter__ _aa"))
    assert [word.text for word in words] == ["mister", "a"]
    assert words[0].start == pytest.approx(2 / RATE)
    assert words[0].end == pytest.approx((11 + 0.5) / RATE)
    long = _frames("mister lorry " * 200)
    assert [word.text for word in Recogniser.load(recogniser).spell(long)] == ["mister", "lory"] * 200


def test_a_word_is_scored_against_its_letters():
    spelling = Spelling("the cat the cat", frozenset({"the", "cat", "dog"}))
    as_word, as_letters = 2.2 / 4.6, 2.0 ** -spelling.letter_bits("cat")
    assert spelling.word_bits("cat") == pytest.approx(math.log2((as_word + as_letters) / (2 * as_letters)))
    assert spelling.word_bits("zzz") == -1
    unigram = (2 + 0.5) / (15 + 14)
    bigram = (2 + 3 * unigram) / (3 + 3)
    trigram = (0 + 3 * bigram) / (0 + 3)
    assert spelling._probability(" ", " ", "c") == pytest.approx(trigram)
    total = sum(spelling._probability("t", "h", letter) for letter in set("the cat"))
    assert 0.8 < total <= 1


def test_metrics_are_per_clip_of_a_minute(recogniser: Path):
    loaded = Recogniser.load(recogniser)
    minute = "mister lor_ry said ".ljust(60 * RATE, "_")
    metrics = loaded.measure_clips([_frames(minute + "_" * (60 * RATE) + "mister"), _frames("zzzz yyyy")])
    bits = [loaded.spelling.word_bits(word) for word in ("mister", "lorry", "said")]
    assert metrics["word_bits"][0] == pytest.approx(sum(bits) / 15)
    assert np.isnan(metrics["word_bits"][1])
    assert metrics["long_words"].tolist() == [1, 0, 0]
    assert metrics["book_triples"].tolist() == [1, 0, 0]


def test_clips_without_words_are_not_resampled():
    rng = np.random.default_rng(0)
    assert (_resample(np.array([math.nan] * 7 + [2.0]), rng) == 2).all()
    assert np.isnan(_resample(np.array([math.nan] * 3), rng)).all()


def test_a_quilt_is_real_speech_in_pieces_of_160_ms():
    frames = random_frames(100 * RATE, 1)
    frames[:, 4:6] = np.stack(np.divmod(np.arange(100 * RATE), 32), axis=1)
    quilt = sample_quilt(frames, 1000, seed=0)
    positions = quilt[:, 4].astype(int) * 32 + quilt[:, 5]
    assert (frames[positions] == quilt).all()
    steps = np.diff(positions)
    is_joint = np.arange(1, 1000) % QUILT_FRAMES == 0
    assert (steps[~is_joint] == 1).all()
    assert ((abs(steps[is_joint]) > MIN_JUMP_FRAMES - QUILT_FRAMES) | (steps[is_joint] == 1)).all()
    assert (steps[is_joint] != 1).mean() > 0.9


@pytest.mark.parametrize("missing", ["recogniser.pt", "english.txt.gz", "aligned.tsv.gz"])
def test_a_missing_or_damaged_file_is_named(missing: str, recogniser: Path):
    (recogniser.parent / missing).write_bytes(b"x")
    with pytest.raises(ValueError, match="is not a recogniser with its lists"):
        Recogniser.load(recogniser)


def test_real_words_are_found_in_real_speech_and_not_in_blocks_of_160_ms():
    if not WORDS.is_dir():
        pytest.skip("the recogniser of the Tale's voice is not at hand")
    frames = read_tale(13)[: 10 * 60 * RATE]
    blocks = frames.reshape(-1, 4, 16)[np.random.default_rng(0).permutation(len(frames) // 4)].reshape(-1, 16)
    tone = np.repeat(frames[1000:1001], 120 * RATE, axis=0)
    words = measure_words(Recogniser.load(WORDS / "listener.pt"), {"blocks": [blocks], "tone": [tone]}, [frames])
    assert words["tone"]["word_bits"] is None
    assert "no words" in "\n".join(_format_words(words))
    assert words["blocks"]["word_bits"]["place"] < 0.15
    assert words["real speech"]["word_bits"]["mean"] > 0.2
    assert words[QUILT]["word_bits"]["mean"] < 0
    assert words["real speech"]["long_words"]["mean"] > 8
