"""Recordings that hold the same speech twice: equal frames, or the same audio at another bit rate, level or start.

The same speech in train and in test makes held-out metrics meaningless.

1. Recordings with equal frames are found by a hash of these.
2. `contours` turns frames into a few smooth curves, 25 values per second, which another codec, sample rate, level or
   start changes little: energy, two LSPs, voicing. Phonemes and pauses shape them, so no other reading has the same.
3. `find_landmarks` describes the most distinct windows of 2.56 s, about four per second, by a key and a check of
   cosine signs. A copy has many of the same keys at the same distances; a chance pair has next to none.
4. Landmarks with the same key and similar checks vote for (two recordings, offset): a sort, no loop over pairs.
5. `measure_overlap` correlates the contours of each candidate, block by block, and counts the seconds that agree.

    duplicates = find_duplicates({"a": frames, "a_64kb": other_frames}, mode)

Source: landmarks that vote for an offset as in A. Wang, "An industrial-strength audio search algorithm" (2003); signs
of local changes as keys as in J. Haitsma and T. Kalker, "A highly robust audio fingerprinting system" (2002).
"""

import hashlib
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from babble.codec.frames import Mode, energy_db, is_voiced, lsp_hz

RATE_HZ = 25
# Of the shorter recording; with less in common, both are kept and the match is only reported.
MIN_SHARE = 0.5
# A reader's opening words can agree for up to 8 s: below, nearly all of the shorter recording must agree.
MIN_SECONDS, MIN_SHARE_OF_SHORT = 8.0, 0.9
# Below this, common speech of less than half a recording, e.g. a jingle, is not reported.
MIN_SHARED_SECONDS = 30.0
# Recordings whose lengths differ by less count as equally long, as an encoder adds some silence.
SAME_LENGTH = 0.05
# In contour values: of landmarks, of blocks that are correlated, and of windows that are transformed at once.
WINDOW, BLOCK, MIN_BLOCK, CUT = 64, 100, 64, 1 << 15
# Half cosines per window of the first contours, by the number of contours: 0.2 to 2.7 Hz with LSPs. Signs of faster
# ones differ between copies that start a fraction of a frame apart.
KEY_WAVES = {1: (24,), 2: (16, 6), 3: (14, 10), 4: (14, 10)}
CHECK_WAVES = 10
# Signs of the check that may differ. They differ in an eighth between copies, in half between others.
MAX_CHECK_ERRORS = 0.3
# A copy gets about 1 vote per second of speech; with fewer than these, there is not enough in common to look at.
MIN_VOTES, MIN_VOTES_PER_SECOND = 2, 0.1
# A key is compared with this many next ones in sorted order. In 1,000 hours of speech about 20 are equal by chance.
MAX_EQUALS = 100
# Offsets at which two recordings are compared, those with most votes: each cut in a copy gives another one.
MAX_OFFSETS = 50
# Least standard deviation of the first contour in a window of speech, 2 dB where it is energy; of speech it is 0.85.
MIN_CHANGE = 0.25
# The same of its changes over two values in a block; of speech it is 0.5.
MIN_STEP = 0.1
# Of a block; 0.5 % of the blocks of copies are below, and all but 0.005 % of blocks at chance offsets.
MIN_CORRELATION = 0.8


@dataclass(frozen=True)
class Duplicate:
    """A recording that has speech in common with another one.

    Attributes:
        name: the recording, the shorter or later one of the two unless the other is to be kept.
        of: the other recording.
        seconds: length of what they have in common.
        share: that length as a share of the shorter recording.
    """

    name: str
    of: str
    seconds: float
    share: float

    @property
    def is_left_out(self) -> bool:
        """Whether it repeats so much that it must not be in another split than the other recording."""
        return self.share >= (MIN_SHARE if self.seconds >= MIN_SECONDS else MIN_SHARE_OF_SHORT)


@dataclass(frozen=True)
class Landmarks:
    """The landmarks of a recording.

    Attributes:
        keys: uint32 (N,); equal in copies.
        checks: uint64 (N,); similar in copies.
        positions: int64 (N,), the first value of each window, in contour values.
    """

    keys: np.ndarray
    checks: np.ndarray
    positions: np.ndarray


def find_duplicates(recordings: Mapping[str, np.ndarray], mode: Mode, named: Collection[str] = ()) -> list[Duplicate]:
    """Return the recordings that repeat others, in order of `recordings`, and pairs with less in common.

        duplicates = find_duplicates({"a": frames, "a_64kb": other_frames}, mode)

    Of two duplicates the longer is kept, or of about the same length the first. A recording is a duplicate of one that
    is kept, so that at least one of several copies is.

    Args:
        recordings: levels (T, F) by name. Each is read once, and again if it may be a duplicate, so they may be files.
        mode: the mode of every frame. In mode 1200, whose labels say nothing of energy or spectrum, voicing is the
            only contour, and copies at another bit rate are found less surely.
        named: recordings to keep rather than others, because the user has named them for a split.
    """
    lengths: dict[str, int] = {}
    landmarks: list[Landmarks] = []
    equal: dict[bytes, list[str]] = defaultdict(list)
    for name in recordings:
        frames = recordings[name]
        lengths[name] = len(frames)
        equal[hashlib.sha256(frames.tobytes()).digest()].append(name)
        landmarks.append(find_landmarks(contours(frames, mode)))
    # Of each group of equal ones, one stands for all.
    groups = {min(names, key=lambda name: name not in named): names for names in equal.values()}
    marks = {name: found for name, found in zip(lengths, landmarks, strict=True) if name in groups}
    seconds = {name: lengths[name] / mode.frames_per_second for name in marks}
    duplicates = _choose(_match(recordings, mode, marks, seconds), seconds, named)
    kept_instead = {duplicate.name: duplicate.of for duplicate in duplicates if duplicate.is_left_out}
    for of, names in groups.items():
        duplicates += [Duplicate(name, kept_instead.get(of, of), seconds[of], 1.0) for name in names if name != of]
    order = {name: index for index, name in enumerate(lengths)}
    return sorted(duplicates, key=lambda duplicate: (order[duplicate.name], order[duplicate.of]))


def _match(
    recordings: Mapping[str, np.ndarray], mode: Mode, marks: Mapping[str, Landmarks], seconds: Mapping[str, float]
) -> dict[tuple[str, str], float]:
    """Return how many seconds of two recordings agree, for each pair that has any, with the first name first."""
    names = list(marks)

    @lru_cache(maxsize=2)
    def read(name: str) -> np.ndarray:
        return contours(recordings[name], mode)

    found = {}
    for (i, j), votes in sorted(find_candidates(list(marks.values())).items()):
        first, second = names[i], names[j]
        shared = min(MIN_SHARED_SECONDS, MIN_SHARE * min(seconds[first], seconds[second]))
        if sum(votes.values()) >= MIN_VOTES_PER_SECOND * shared:
            found[first, second] = measure_overlap(read(first), read(second), list(votes)[:MAX_OFFSETS])
    return found


def _choose(
    matches: Mapping[tuple[str, str], float], seconds: Mapping[str, float], named: Collection[str]
) -> list[Duplicate]:
    """Return which recordings to leave out, and pairs of others with something in common."""
    partners: dict[str, dict[str, Duplicate]] = defaultdict(dict)
    lengths = dict(seconds)
    for (first, second), agreeing in matches.items():
        shorter = min(seconds[first], seconds[second])
        for name, of in ((first, second), (second, first)):
            partners[name][of] = Duplicate(name, of, agreeing, min(1.0, agreeing / shorter))
            # The longer of two copies of about the same length is not preferred.
            if seconds[name] < seconds[of] <= (1 + SAME_LENGTH) * seconds[name]:
                lengths[name] = max(lengths[name], seconds[of])
    chosen: list[Duplicate] = []
    kept: set[str] = set()
    # The sort is stable: of the same length, the first is kept.
    for name in sorted(seconds, key=lambda name: (name not in named, -lengths[name])):
        others = [duplicate for of, duplicate in partners[name].items() if of in kept]
        if repeated := [duplicate for duplicate in others if duplicate.is_left_out]:
            chosen.append(max(repeated, key=lambda duplicate: duplicate.seconds))
        else:
            kept.add(name)
            chosen += [duplicate for duplicate in others if duplicate.seconds >= MIN_SHARED_SECONDS]
    return chosen


def contours(frames: np.ndarray, mode: Mode) -> np.ndarray:
    """Return the contours of a recording, float32 (T, C) at 25 Hz: the first is energy if the mode has it.

    Then follow two LSPs, if the mode has them, and voicing. LSPs are deviations from the recording's mean where it is
    voiced, and 0 elsewhere. A standard deviation is about 1. Pitch is no contour: copies often differ by an octave.
    """
    voiced_T = is_voiced(frames, mode)
    columns = mode.group_indices("voicing")
    found = []
    if (energy_T := energy_db(frames, mode)) is not None and len(energy_T):
        # Relative to loud frames, because copies differ in level; clipped, because they differ in their noise.
        found.append(np.clip(energy_T - np.percentile(energy_T, 95) + 12.5, -12.5, 12.5) / 8)
    if (lsp_TF := lsp_hz(frames, mode)) is not None:
        found += [_deviate(lsp_TF[:, f] / 250, voiced_T) for f in (5, 4)]
    # In 700C, with one decision per frame, it is noisier.
    found.append(2 * frames[:, columns].mean(axis=1) if columns else voiced_T.astype(np.float64))
    contours_TC = np.stack(found, axis=1).astype(np.float32)
    if (step := mode.frames_per_second // RATE_HZ) > 1:
        whole = len(contours_TC) // step * step
        contours_TC = contours_TC[:whole].reshape(-1, step, contours_TC.shape[1]).mean(axis=1)
    padded = np.pad(contours_TC, ((2, 2), (0, 0)), mode="edge") if len(contours_TC) else contours_TC
    return sum(
        (weight / 9 * padded[i : i + len(contours_TC)] for i, weight in enumerate((1, 2, 3, 2, 1))),
        np.zeros_like(contours_TC),
    )


def _deviate(values_T: np.ndarray, voiced_T: np.ndarray) -> np.ndarray:
    mean = values_T[voiced_T].mean() if voiced_T.any() else 0.0
    return np.where(voiced_T, values_T - mean, 0.0)


def _cosines(waves: int) -> np.ndarray:
    """Return the first half cosines of a window without the constant, float32 (WINDOW, waves)."""
    t = np.arange(WINDOW) + 0.5
    return np.cos(np.pi / WINDOW * np.outer(t, np.arange(1, waves + 1))).astype(np.float32)


def _transform(contour_T: np.ndarray, waves: int) -> np.ndarray:
    """Return the cosine transform of every window, float32 (T - WINDOW + 1, waves)."""
    windows, cosines = sliding_window_view(contour_T, WINDOW), _cosines(waves)
    # Cut, because a product with a view copies it: 64 times the contour of a book of many hours.
    cuts = [windows[start : start + CUT] for start in range(0, len(windows), CUT)]
    return np.concatenate([np.ascontiguousarray(cut) @ cosines for cut in cuts])


def _pack_signs(values_NK: np.ndarray) -> np.ndarray:
    return (values_NK > 0) @ (1 << np.arange(values_NK.shape[1], dtype=np.uint64))


def _deviation(values_T: np.ndarray, length: int) -> np.ndarray:
    """Return the standard deviation of every window of this length, float64 (T - length + 1,)."""
    sums = np.cumsum(np.concatenate([np.zeros((1, 2)), np.stack([values_T, values_T**2], 1)]), axis=0)
    mean, square = ((sums[length:] - sums[:-length]) / length).T
    return np.sqrt(np.maximum(square - mean**2, 0))


def find_landmarks(contours_TC: np.ndarray) -> Landmarks:
    """Return the landmarks of a recording's contours, about four per second of speech, none in silence or a tone."""
    num = len(contours_TC) - WINDOW + 1
    if num < 1:
        return Landmarks(np.empty(0, np.uint32), np.empty(0, np.uint64), np.empty(0, np.int64))
    key_waves = KEY_WAVES[contours_TC.shape[1]]
    key_TK = np.concatenate([_transform(contours_TC[:, c], waves) for c, waves in enumerate(key_waves)], axis=1)
    # Distinct windows: all waves far from 0, where their signs would change easily. The best of 5 neighbours.
    scale_K = np.sqrt(np.square(key_TK).mean(axis=0)) + 1e-6
    margin_T = np.log(np.abs(key_TK) / scale_K + 0.02).mean(axis=1)
    best_T = sliding_window_view(np.pad(margin_T, 2, constant_values=-np.inf), 5).max(axis=1)
    positions = np.flatnonzero((margin_T == best_T) & (_deviation(contours_TC[:, 0], WINDOW) >= MIN_CHANGE))
    keys = _pack_signs(key_TK[positions]).astype(np.uint32)
    windows = sliding_window_view(contours_TC[:, len(key_waves) :], WINDOW, axis=0)[positions]
    checks = _pack_signs((windows @ _cosines(CHECK_WAVES)).reshape(len(windows), CHECK_WAVES * windows.shape[1]))
    return Landmarks(keys, checks, positions)


def find_candidates(landmarks: list[Landmarks]) -> dict[tuple[int, int], dict[int, int]]:
    """Return the offsets at which two recordings may agree, with their votes, most votes first.

    Args:
        landmarks: of each recording.

    Returns:
        by (i, j), i < j, votes by offset in contour values: value t + offset of recording i is value t of recording j.
    """
    if not landmarks:
        return {}
    keys = np.concatenate([marks.keys for marks in landmarks])
    checks = np.concatenate([marks.checks for marks in landmarks])
    owners = np.repeat(np.arange(len(landmarks)), [len(marks.keys) for marks in landmarks])
    positions = np.concatenate([marks.positions for marks in landmarks])
    # The sort is stable, so the owners of equal keys are in order.
    order = np.argsort(keys, kind="stable")
    keys, checks, owners, positions = keys[order], checks[order], owners[order], positions[order]
    num_checks = max(1, int(checks.max(initial=0)).bit_length())
    votes = [np.empty((0, 2), np.int64)]
    for step in range(1, MAX_EQUALS):
        first = np.flatnonzero(keys[step:] == keys[:-step])
        if not len(first):
            break
        first = first[owners[first] != owners[first + step]]
        second = first + step
        errors = np.bitwise_count(checks[first] ^ checks[second])
        similar = errors <= MAX_CHECK_ERRORS * num_checks
        first, second = first[similar], second[similar]
        pair = owners[first] * len(landmarks) + owners[second]
        votes.append(np.stack([pair, positions[first] - positions[second]], axis=1))
    return _count_votes(np.concatenate(votes), len(landmarks))


def _count_votes(votes_N2: np.ndarray, num_recordings: int) -> dict[tuple[int, int], dict[int, int]]:
    """Return the offsets with enough votes by pair; votes are (pair, offset), and offsets 1 apart count together."""
    # Two apart, so that neighbouring pairs can't be neighbours.
    span = 2 * int(np.abs(votes_N2[:, 1]).max(initial=0)) + 3
    slots, counts = np.unique(votes_N2[:, 0] * span + votes_N2[:, 1] + span // 2, return_counts=True)
    is_next = np.diff(slots) == 1
    before = np.concatenate([[0], np.where(is_next, counts[:-1], 0)])[: len(counts)]
    after = np.concatenate([np.where(is_next, counts[1:], 0), [0]])[: len(counts)]
    totals = before + counts + after
    chosen = np.flatnonzero((totals >= MIN_VOTES) & (counts >= after) & (counts > before))
    chosen = chosen[np.argsort(-totals[chosen], kind="stable")]
    found: dict[tuple[int, int], dict[int, int]] = defaultdict(dict)
    for slot, total in zip(slots[chosen].tolist(), totals[chosen].tolist(), strict=True):
        found[divmod(slot // span, num_recordings)][slot % span - span // 2] = total
    return found


def measure_overlap(first_TC: np.ndarray, second_TC: np.ndarray, offsets: Iterable[int]) -> float:
    """Return how many seconds of two recordings agree.

    Args:
        first_TC: contours of a recording.
        second_TC: contours of the other one.
        offsets: value t + offset of the first is compared with value t of the second.
    """
    is_equal_T = np.zeros(len(second_TC), bool)
    for offset in offsets:
        start, stop = max(0, -offset), min(len(second_TC), len(first_TC) - offset)
        length = min(BLOCK, stop - start)
        if length < MIN_BLOCK:
            continue
        # Blocks overlap by half; the last one ends at the end.
        starts = np.unique(np.append(np.arange(0, stop - start - length + 1, BLOCK // 2), stop - start - length))
        blocks = correlate_blocks(first_TC[start + offset : stop + offset], second_TC[start:stop], starts, length)
        for block in starts[blocks >= MIN_CORRELATION] + start:
            is_equal_T[block : block + length] = True
    return float(is_equal_T.sum()) / RATE_HZ


def correlate_blocks(first_TC: np.ndarray, second_TC: np.ndarray, starts: np.ndarray, length: int) -> np.ndarray:
    """Return the correlation over all contours of blocks of two recordings of the same length, 0 in silence.

    Args:
        first_TC: contours of a recording, aligned with
        second_TC: contours of the other one.
        starts: int64 (N,), where the blocks start.
        length: of a block.

    Returns:
        float64 (N,).
    """
    # Of the changes over 80 ms: readers repeat themselves, but not to the frame.
    first_TC, second_TC = (contours_TC[2:] - contours_TC[:-2] for contours_TC in (first_TC, second_TC))
    length -= 2
    products = np.stack([first_TC, second_TC, first_TC**2, second_TC**2, first_TC * second_TC], dtype=np.float64)
    sums = np.concatenate([np.zeros_like(products[:, :1]), np.cumsum(products, axis=1)], axis=1)
    x, y, xx, yy, xy = (sums[:, starts + length] - sums[:, starts]) / length
    variance_x, variance_y = xx - x * x, yy - y * y
    is_speech = np.minimum(variance_x[:, 0], variance_y[:, 0]) >= MIN_STEP**2
    norm = np.sqrt(variance_x.sum(axis=1) * variance_y.sum(axis=1))
    return np.where(is_speech, (xy - x * y).sum(axis=1) / np.maximum(norm, 1e-9), 0.0)
