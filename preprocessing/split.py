"""Split recordings into train, validation and test: pure functions of names and lengths.

The first of these that applies:

1. by name, if `split.validation` or `split.test` has patterns;
2. by recording, so that no held-out recording was used for training;
3. by time, if there are too few recordings: the end of each recording is for test, the segment before for validation.
"""

import hashlib
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal, get_args

from preprocessing.names import printable

DEFAULT_FRACTION = 0.05
# With fewer recordings, or with one longer than all others together, whole recordings do not give the fractions.
MIN_RECORDINGS = 8

Split = Literal["train", "validation", "test"]


@dataclass(frozen=True)
class SplitConfig:
    """How recordings are split into train, validation and test.

    Attributes:
        validation: Names of the validation recordings, with wildcards; the end of a name is enough ('part-13*' for
            'tale/part-13').
        test: Names of the test recordings, with wildcards; '*' for a corpus that is for evaluation only.
        validation_fraction: Share of the frames for validation, 0.05 if omitted. Only without names.
        test_fraction: Share of the frames for test, 0.05 if omitted. Only without names.
        seed: Random seed of the choice of recordings. Only without names.
    """

    validation: tuple[str, ...] = ()
    test: tuple[str, ...] = ()
    validation_fraction: float | None = None
    test_fraction: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        """Validate fractions; reject fractions without effect."""
        for name in ("validation_fraction", "test_fraction"):
            fraction = getattr(self, name)
            if fraction is None:
                continue
            if self.validation or self.test:
                raise ValueError(f"split.{name} has no effect together with split.validation or split.test.")
            if not 0 <= fraction < 1:
                raise ValueError(f"split.{name}={fraction}: must be at least 0 and below 1.")
        if self.fractions[0] + self.fractions[1] >= 1:
            raise ValueError(
                "split.validation_fraction + split.test_fraction must be below 1. For a corpus that is for evaluation "
                "only, give --split.test '*'."
            )

    @property
    def fractions(self) -> tuple[float, float]:
        """The shares of validation and test."""
        validation = DEFAULT_FRACTION if self.validation_fraction is None else self.validation_fraction
        test = DEFAULT_FRACTION if self.test_fraction is None else self.test_fraction
        return validation, test


@dataclass(frozen=True)
class SplitSegment:
    """Consecutive frames of one recording that belong to one split."""

    recording: str
    split: Split
    first_frame: int
    frames: int


def match_names(names: Sequence[str], config: SplitConfig) -> dict[str, Split] | None:
    """Return the split of every recording according to the config's patterns, None if it has no patterns.

    The patterns may match all recordings: a corpus for evaluation only.

    Raises:
        ValueError: a pattern that no recording matches, or a recording that both splits ask for.
    """
    if not config.validation and not config.test:
        return None
    splits: dict[str, Split] = {}
    held_out: tuple[tuple[Split, tuple[str, ...]], ...] = (("validation", config.validation), ("test", config.test))
    for split, patterns in held_out:
        for pattern in patterns:
            matching = _find_names(names, pattern)
            if not matching:
                shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
                raise ValueError(f"split.{split}: no recording matches {pattern!r}. The recordings are {shown}.")
            for name in matching:
                if splits.setdefault(name, split) != split:
                    raise ValueError(f"split.validation and split.test both match recording {name!r}.")
    return {name: splits.get(name, "train") for name in names}


def find_lost_splits(matched: Mapping[str, Split] | None, usable: Container[str]) -> dict[Split, list[str]]:
    """Return the splits that were given by name and lost all their recordings, with the names of these.

    Args:
        matched: result of `match_names`.
        usable: names of the recordings that did not fail.
    """
    names: dict[Split, list[str]] = {}
    for name, split in (matched or {}).items():
        names.setdefault(split, []).append(name)
    return {
        split: lost for split, lost in names.items() if split != "train" and not any(name in usable for name in lost)
    }


def _find_names(names: Sequence[str], pattern: str) -> list[str]:
    def endings(name: str) -> list[str]:
        parts = name.split("/")
        return ["/".join(parts[start:]) for start in range(len(parts))]

    # As the names of the recordings are.
    pattern = printable(pattern)
    # A name may contain brackets, so an exact match comes before wildcards.
    same = [name for name in names if pattern in endings(name)]
    return same or [name for name in names if any(fnmatchcase(ending, pattern) for ending in endings(name))]


def split_recordings(
    frames: Mapping[str, int], config: SplitConfig, matched: Mapping[str, Split] | None = None
) -> list[SplitSegment]:
    """Return the segments of all recordings, in order of split (train, validation, test) and then of `frames`.

    Args:
        frames: number of frames of each recording, in order.
        config: the settings.
        matched: result of `match_names`; it may contain recordings that failed and are not in `frames`.
    """
    total = sum(frames.values())
    if matched is None and (len(frames) < MIN_RECORDINGS or max(frames.values()) * 2 > total):
        segments = [segment for name, length in frames.items() for segment in _split_by_time(name, length, config)]
    else:
        splits = matched or _split_by_recording(frames, config)
        segments = [SplitSegment(name, splits[name], 0, length) for name, length in frames.items()]
    order = get_args(Split)
    return sorted((segment for segment in segments if segment.frames), key=lambda segment: order.index(segment.split))


def _split_by_time(name: str, length: int, config: SplitConfig) -> list[SplitSegment]:
    num_validation, num_test = (round(length * fraction) for fraction in config.fractions)
    num_train = length - num_validation - num_test
    return [
        SplitSegment(name, "train", 0, num_train),
        SplitSegment(name, "validation", num_train, num_validation),
        SplitSegment(name, "test", num_train + num_validation, num_test),
    ]


def _split_by_recording(frames: Mapping[str, int], config: SplitConfig) -> dict[str, Split]:
    # Sorted by a hash of the name, so that adding or removing a recording moves as few others as possible.
    shuffled = sorted(frames, key=lambda name: hashlib.sha256(f"{config.seed}:{name}".encode()).digest())
    splits: dict[str, Split] = dict.fromkeys(frames, "train")
    total = sum(frames.values())
    held_out: tuple[Split, ...] = ("validation", "test")
    for split, fraction in zip(held_out, config.fractions, strict=True):
        wanted = fraction * total
        free = [name for name in shuffled if splits[name] == "train"]
        taken = 0
        for name in free:
            # A recording that would exceed the share by half is skipped; a shorter one may follow.
            if taken < wanted and taken + frames[name] <= 1.5 * wanted:
                splits[name] = split
                taken += frames[name]
        if wanted and not taken:
            splits[min(free, key=lambda name: frames[name])] = split
    return splits
