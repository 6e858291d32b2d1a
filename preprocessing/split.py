"""Which frames of which recording are for training, validation and test: pure functions of names and lengths.

Three ways, tried in this order:

1. by patterns, where `split.validation` or `split.test` names recordings;
2. by recording, so that nothing of a held-out chapter was heard in training;
3. by time, where there are too few recordings for that: the last part of each is for the test, the one before it for
   validation.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

DEFAULT_FRACTION = 0.05
# Below this, or where one recording is longer than all others together, single recordings are too coarse a measure.
MIN_RECORDINGS = 8


@dataclass(frozen=True)
class SplitConfig:
    """How recordings are divided into train, validation and test.

    Attributes:
        validation: Names of the recordings to validate on, wildcards allowed; a name's last part is enough
            ('part-13*' for 'tale/part-13').
        test: Names of the recordings to test on, likewise.
        validation_fraction: Share of the frames to validate on where no names are given (0.05 if left out).
        test_fraction: Share of the frames to test on where no names are given (0.05 if left out).
        seed: Chooses other recordings where no names are given.
    """

    validation: tuple[str, ...] = ()
    test: tuple[str, ...] = ()
    validation_fraction: float | None = None
    test_fraction: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what contradicts itself."""
        for name in ("validation_fraction", "test_fraction"):
            fraction = getattr(self, name)
            if fraction is None:
                continue
            if self.validation or self.test:
                raise ValueError(f"split.{name} has no effect where split.validation or split.test names recordings.")
            if not 0 <= fraction < 1:
                raise ValueError(f"split.{name}={fraction} is no share; it must be at least 0 and below 1.")
        if self.fractions[0] + self.fractions[1] >= 1:
            raise ValueError("split.validation_fraction and split.test_fraction leave nothing to train on.")

    @property
    def fractions(self) -> tuple[float, float]:
        """The shares of validation and test."""
        validation = DEFAULT_FRACTION if self.validation_fraction is None else self.validation_fraction
        test = DEFAULT_FRACTION if self.test_fraction is None else self.test_fraction
        return validation, test


@dataclass(frozen=True)
class Part:
    """A run of one recording's frames that belongs to one split."""

    recording: str
    split: str
    first_frame: int
    frames: int


def match_names(names: Sequence[str], config: SplitConfig) -> dict[str, str] | None:
    """Return the split of every recording by the config's patterns, None where it has none.

    The patterns may match all recordings: a corpus for evaluation only.

    Raises:
        ValueError: a pattern that no recording matches, or a recording that both splits ask for.
    """
    if not config.validation and not config.test:
        return None
    splits: dict[str, str] = {}
    for split, patterns in (("validation", config.validation), ("test", config.test)):
        for pattern in patterns:
            matching = _find_names(names, pattern)
            if not matching:
                shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
                raise ValueError(f"split.{split}: no recording is called {pattern!r}. There are: {shown}.")
            for name in matching:
                if splits.setdefault(name, split) != split:
                    raise ValueError(f"split.validation and split.test both ask for recording {name!r}.")
    return {name: splits.get(name, "train") for name in names}


def _find_names(names: Sequence[str], pattern: str) -> list[str]:
    def endings(name: str) -> list[str]:
        parts = name.split("/")
        return ["/".join(parts[start:]) for start in range(len(parts))]

    # A name may hold brackets itself: what is typed as it stands comes first.
    same = [name for name in names if pattern in endings(name)]
    return same or [name for name in names if any(fnmatchcase(ending, pattern) for ending in endings(name))]


def split_recordings(
    frames: Mapping[str, int], config: SplitConfig, matched: Mapping[str, str] | None = None
) -> list[Part]:
    """Return the parts of all recordings, in order of split (train, validation, test) and then of `frames`.

    Args:
        frames: how many frames each recording has, in order.
        matched: what `match_names` gave; it may know of recordings that turned out bad and are not in `frames`.
    """
    total = sum(frames.values())
    if matched is None and (len(frames) < MIN_RECORDINGS or max(frames.values()) * 2 > total):
        parts = [part for name, length in frames.items() for part in _split_by_time(name, length, config)]
    else:
        splits = matched or _split_by_recording(frames, config)
        parts = [Part(name, splits[name], 0, length) for name, length in frames.items()]
    order = ("train", "validation", "test")
    return sorted((part for part in parts if part.frames), key=lambda part: order.index(part.split))


def _split_by_time(name: str, length: int, config: SplitConfig) -> list[Part]:
    num_validation, num_test = (round(length * fraction) for fraction in config.fractions)
    num_train = length - num_validation - num_test
    return [
        Part(name, "train", 0, num_train),
        Part(name, "validation", num_train, num_validation),
        Part(name, "test", num_train + num_validation, num_test),
    ]


def _split_by_recording(frames: Mapping[str, int], config: SplitConfig) -> dict[str, str]:
    # By a hash of each name: another recording, or one less, changes as little as can be.
    shuffled = sorted(frames, key=lambda name: hashlib.sha256(f"{config.seed}:{name}".encode()).digest())
    splits = dict.fromkeys(frames, "train")
    total = sum(frames.values())
    for split, fraction in zip(("validation", "test"), config.fractions, strict=True):
        wanted = fraction * total
        free = [name for name in shuffled if splits[name] == "train"]
        taken = 0
        for name in free:
            # One that would overshoot by half is passed over, as a shorter one may follow.
            if taken < wanted and taken + frames[name] <= 1.5 * wanted:
                splits[name] = split
                taken += frames[name]
        if wanted and not taken:
            splits[min(free, key=lambda name: frames[name])] = split
    return splits
