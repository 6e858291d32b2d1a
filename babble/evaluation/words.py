"""Real words in babble: what a recogniser of the voice spells, beside real speech and speech without words.

    words = measure_words(Recogniser.load(Path("words/listener.pt")), {"babble": streams}, held_out)
    words["babble"]["word_bits"]["place"]

1. A recogniser spells frames letter by letter: a network trained with CTC on the voice, without a dictionary and
   without a language model. It measures; nothing is ever trained with it.
2. Spelled words of four letters or more are scored by how much likelier they are as words of English or of the book
   than as strings of letters of the book.
3. The mean over clips of a minute is placed between a quilt of 160 ms (0), i.e. real speech cut and joined where it
   fits, which holds syllables but no words, and real speech (1).

The recogniser is a file of weights for mode 1300; beside it lie `english.txt.gz`, a word per line, and
`aligned.tsv.gz`, the text of the book with part, first and end frame. What is measured for one voice says nothing about
another.
"""

import gzip
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from babble.codec.frames import MODES
from babble.evaluation.references import sample_quilt
from babble.evaluation.speech_statistics import REAL
from babble.model.checkpoint import load_checkpoint

# "_" is the blank of CTC.
LETTERS = "_ abcdefghijklmnopqrstuvwxyz'"
LETTERS_PER_FRAME = 2
MODE = MODES["1300"]
CLIP_SECONDS = 60
MIN_LETTERS, LONG_LETTERS = 4, 6
# Frames are recognised in windows; the margin on both sides is context only.
WINDOW_FRAMES, MARGIN_FRAMES, WINDOWS_PER_BATCH = 750, 100, 16
# Added to the count of every known word, so that a word that the book lacks has a probability.
UNSEEN_COUNT = 0.2
NUM_RESAMPLES = 2000
# The parts of the book whose text gives the probabilities: those for training.
TEXT_PARTS = range(1, 13)
QUILT = "quilt of 160 ms"


class Word(NamedTuple):
    """A spelled word, and the seconds at which its first letter begins and its last one ends."""

    text: str
    start: float
    end: float


class _Network(nn.Module):
    """Embedded fields, a convolution over five frames, bidirectional LSTMs, two letters per frame."""

    first_row: Tensor

    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        self.table = nn.EmbeddingBag(int(MODE.levels.sum()), width, mode="sum")
        self.near = nn.Conv1d(width, width, 5, padding=2)
        self.lstm = nn.ModuleList(
            nn.LSTM(2 * width if i else width, width, batch_first=True, bidirectional=True) for i in range(layers)
        )
        self.out = nn.Linear(2 * width, LETTERS_PER_FRAME * len(LETTERS))
        self.register_buffer("first_row", torch.tensor([0, *MODE.levels.cumsum()[:-1]]), persistent=False)

    def forward(self, frames_BTF: Tensor) -> Tensor:
        """Return logits of letters (B, 2 T, letters)."""
        batch, num_frames, _ = frames_BTF.shape
        x_BTH = self.table((frames_BTF + self.first_row).flatten(0, 1)).view(batch, num_frames, -1)
        x_BTH = functional.relu(self.near(x_BTH.transpose(1, 2)).transpose(1, 2)) + x_BTH
        for lstm in self.lstm:
            x_BTH, _ = lstm(x_BTH)
        logits: Tensor = self.out(x_BTH).view(batch, LETTERS_PER_FRAME * num_frames, len(LETTERS))
        return logits


class Spelling:
    """How much likelier a spelled word is as a word than as a string of letters.

    Args:
        book: text in lower-case letters and spaces.
        english: known words.
    """

    def __init__(self, book: str, english: frozenset[str]) -> None:
        words = book.split()
        self.english = english
        self.triples = set(zip(words, words[1:], words[2:], strict=False))
        self._words = Counter(words)
        self._num_words = len(words) + UNSEEN_COUNT * len(english)
        self._trigrams, self._bigrams = Counter(zip(book, book[1:], book[2:], strict=False)), Counter(pairwise(book))
        self._letters, self._num_letters = Counter(book), len(book)

    def letter_bits(self, word: str) -> float:
        """Return -log2 of the probability of a word and its end by the book's trigrams of letters."""
        return sum(-math.log2(self._probability(*f"  {word} "[i : i + 3])) for i in range(len(word) + 1))

    def _probability(self, first: str, second: str, third: str) -> float:
        # Absolute counts, smoothed by those of shorter contexts.
        probability = (self._letters[third] + 0.5) / (self._num_letters + 14)
        probability = (self._bigrams[second, third] + 3 * probability) / (self._letters[second] + 3)
        return (self._trigrams[first, second, third] + 3 * probability) / (self._bigrams[first, second] + 3)

    def word_bits(self, word: str) -> float:
        """Return log2((p_word + p_letters) / (2 p_letters)): -1 for no word, 5 for "with", 20 for "prisoner"."""
        as_letters = 2.0 ** -self.letter_bits(word)
        is_known = word in self.english
        as_word = (self._words[word] + UNSEEN_COUNT) / self._num_words if is_known else 0.0
        return math.log2((as_word + as_letters) / (2 * as_letters))


@dataclass(frozen=True)
class Recogniser:
    """Spells frames of mode 1300, and scores what it spelled."""

    network: nn.Module
    spelling: Spelling

    @classmethod
    def load(cls, path: Path) -> "Recogniser":
        """Return a recogniser from its file and the two lists beside it.

        Raises:
            ValueError: a file is missing or has another format.
        """
        try:
            content = load_checkpoint(path)
            network = _Network(content["shape"]["width"], content["shape"]["layers"])
            network.load_state_dict({name: values.float() for name, values in content["weights"].items()})
            with gzip.open(path.parent / "english.txt.gz", "rt", encoding="utf-8") as file:
                english = frozenset(file.read().split())
            with gzip.open(path.parent / "aligned.tsv.gz", "rt", encoding="utf-8") as file:
                rows = [line.rstrip("\n").split("\t") for line in file]
            book = " ".join(text for part, _, _, text in rows if int(part) in TEXT_PARTS)
        except (OSError, EOFError, KeyError, TypeError, ValueError, RuntimeError) as error:
            raise ValueError(f"{path} is not a recogniser with its lists: {error}") from None
        return cls(network.eval(), Spelling(book, english))

    @torch.inference_mode()
    def spell(self, frames: np.ndarray) -> list[Word]:
        """Return the words in frames (T, F), in order: the likeliest letter at each time, repetitions merged."""
        step = WINDOW_FRAMES - 2 * MARGIN_FRAMES
        padded = np.pad(frames.astype(np.int64), ((MARGIN_FRAMES, WINDOW_FRAMES), (0, 0)), mode="edge")
        starts = range(0, len(frames), step)
        windows_NTF = torch.from_numpy(np.stack([padded[start : start + WINDOW_FRAMES] for start in starts]))
        best_NT = torch.cat([self.network(batch).argmax(dim=-1) for batch in windows_NTF.split(WINDOWS_PER_BATCH)])
        margin = LETTERS_PER_FRAME * MARGIN_FRAMES
        letters = best_NT[:, margin:-margin].flatten()[: LETTERS_PER_FRAME * len(frames)].numpy()
        is_new = (letters != 0) & (letters != np.concatenate([[0], letters[:-1]]))
        seconds = 1 / (LETTERS_PER_FRAME * MODE.frames_per_second)
        words: list[Word] = []
        text, start, end = "", 0.0, 0.0
        for position in np.flatnonzero(is_new).tolist():
            letter = LETTERS[letters[position]]
            if letter == " ":
                words += [Word(text, start, end)] if text else []
                text = ""
            else:
                start = start if text else position * seconds
                text, end = text + letter, (position + 1) * seconds
        return [*words, Word(text, start, end)] if text else words

    def measure_clips(self, recordings: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
        """Return the metrics of each clip of a minute; a recording of less than a minute is one clip.

        Returns:
            arrays (clips,): "word_bits" per letter of words of four letters or more, NaN without any; "long_words",
            known words of six letters or more per minute; "book_triples" per minute, three known words in the order of
            the book, of nine letters or more.
        """
        metrics: dict[str, list[float]] = {"word_bits": [], "long_words": [], "book_triples": []}
        for frames in recordings:
            duration = len(frames) / MODE.frames_per_second
            clip_seconds, words = min(CLIP_SECONDS, duration), self.spell(frames)
            for n in range(max(1, int(duration // CLIP_SECONDS))):
                texts = [word.text for word in words if n <= word.start / clip_seconds < n + 1]
                for name, value in self._measure(texts, clip_seconds).items():
                    metrics[name].append(value)
        return {name: np.array(values) for name, values in metrics.items()}

    def _measure(self, words: list[str], seconds: float) -> dict[str, float]:
        spelling, per_minute = self.spelling, 60 / seconds
        scored = [word for word in words if len(word) >= MIN_LETTERS]
        bits, letters = sum(map(spelling.word_bits, scored)), sum(map(len, scored))
        num_long = sum(len(word) >= LONG_LETTERS and word in spelling.english for word in words)
        triples = [three for three in zip(words, words[1:], words[2:], strict=False) if sum(map(len, three)) >= 9]
        return {
            "word_bits": bits / letters if letters else math.nan,
            "long_words": num_long * per_minute,
            "book_triples": sum(three in spelling.triples for three in triples) * per_minute,
        }


def measure_words(
    recogniser: Recogniser, speech: Mapping[str, Sequence[np.ndarray]], real: Sequence[np.ndarray], seed: int = 0
) -> dict[str, Any]:
    """Return the words in sets of recordings, and where they lie between a quilt of real speech and real speech.

    Args:
        recogniser: of the voice that is measured.
        speech: recordings (T, F) of mode 1300 by name of their set; forty minutes each tell a fifth of real speech's
            words from none.
        real: held-out recordings of the voice, an hour or more.
        seed: random seed of the quilt and of the intervals.

    Returns:
        by set, "real speech" and the quilt included: "minutes", and by metric of `Recogniser.measure_clips` its
        "mean", and the 95 % interval "low" and "high" over clips; "word_bits" also has "place", "place_low" and
        "place_high", 0 for the quilt and 1 for real speech. It is None for a set without any word of that length, e.g.
        one tone.
    """
    joined = np.concatenate(real)
    sets = {**speech, QUILT: [sample_quilt(joined, len(joined), seed)], REAL: real}
    clips = {name: recogniser.measure_clips(recordings) for name, recordings in sets.items()}
    rng = np.random.default_rng(seed)
    zero, one = scale = [_resample(clips[name]["word_bits"], rng) for name in (QUILT, REAL)]
    found: dict[str, Any] = {}
    for name, metrics in clips.items():
        frames = sum(map(len, sets[name]))
        found[name] = {"minutes": frames / MODE.frames_per_second / 60}
        for metric, values in metrics.items():
            if np.isnan(values).all() or (metric == "word_bits" and np.isnan(scale).any()):
                found[name][metric] = None
                continue
            means = _resample(values, rng)
            found[name][metric] = {"mean": float(np.nanmean(values)), **_interval(means)}
            if metric == "word_bits":
                places = (means - zero) / (one - zero)
                found[name][metric] |= {f"place_{key}": value for key, value in _interval(places).items()}
                found[name][metric]["place"] = float(np.median(places))
    return found


def _resample(values: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return the mean of each of many samples of the clips that have a value; NaN if none has."""
    known = values[~np.isnan(values)]
    if not len(known):
        return np.full(NUM_RESAMPLES, np.nan)
    means: np.ndarray = known[rng.integers(0, len(known), (NUM_RESAMPLES, len(known)))].mean(axis=1)
    return means


def _interval(means: np.ndarray) -> dict[str, float]:
    low, high = np.percentile(means, [2.5, 97.5])
    return {"low": float(low), "high": float(high)}
