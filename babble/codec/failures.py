"""Detectors for the known failures of generation: silence, a held tone, a pulse, a loop.

    guard = Guard(mode)
    for block in stream:
        for alarm in guard.update(block): ...

Input: frames of any mode, in blocks of any size. Output: an `Alarm` when a failure is detected, once per failure.

Once per second the last `WINDOW_SECONDS` are compared with the frames one frame earlier, two frames earlier, and so on
up to `LONGEST_LOOP_SECONDS`. The similarity of two frames is the share of fields with equal levels, within a sixteenth
of the number of levels (labels, voicing and coarse fields: exactly equal). The first of these that holds is reported:

1. silence: every frame is quiet for longer than any pause, or for a whole window without the noise of a pause;
2. tone: each frame is similar to the next;
3. pulse: the frames repeat with a period of up to `LONGEST_PULSE_SECONDS`;
4. loop: they repeat with a longer period.

Quiet frames are no evidence of the last three. In modes that code the energy in a label (2400, 1400, 1200) a quiet
frame can't be recognised: there it is an unvoiced frame, so a silence with some noise in it is not detected.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from babble.codec.frames import Mode

Kind = Literal["silence", "tone", "pulse", "loop"]
KINDS: tuple[str, ...] = get_args(Kind)

# The constants are calibrated so that real speech raises no alarm: 13.7 hours of the Tale (parts 1 to 13), 1.6 hours of
# kathleen and 1.2 of margot in mode 1300, and 2.8 hours of the three in each other mode. The extreme values found there
# are in brackets.

# With shorter windows slow vowels look like tones; with longer ones failures are detected later.
WINDOW_SECONDS = 4
# Frames of a window that are compared, evenly spaced: comparing every frame would take three to five times as long.
PROBES = 40
# A slower repetition sounds like a phrase that comes again.
LONGEST_PULSE_SECONDS = 0.5
LONGEST_LOOP_SECONDS = 10
LOOK_SECONDS = 1
# Minimum similarity, as a mean over a window (0.84 for a tone in mode 3200, 0.78 in 1300, 0.82 for loops).
MIN_SIMILARITY = 0.9
# A word in a pause resembles another word by chance.
MIN_LOUD_PROBES = 12
# Share of the energy levels below which a frame is quiet: up to 4 dB, 20 dB in mode 700C.
QUIET = 0.3
# A narrator may pause for long between two chapters (10.3).
SILENCE_SECONDS = 15
# The noise of a pause changes from frame to frame (0.89); a network that fell silent repeats its frame.
STILL = 0.97


@dataclass(frozen=True)
class Alarm:
    """A detected failure.

    Attributes:
        kind: one of `KINDS`.
        first_frame: where the failure began, in frames since the start of the stream.
        frames: how long it had lasted when it was detected.
        period_frames: number of frames after which it repeats; 1 for a tone, 0 for silence.
    """

    kind: Kind
    first_frame: int
    frames: int
    period_frames: int


class Guard:
    """Detects the failures of one stream.

    Attributes:
        failing: the failure at the end of the stream, if any.
    """

    def __init__(self, mode: Mode) -> None:
        rate = mode.frames_per_second
        self._mode = mode
        self._window = WINDOW_SECONDS * rate
        self._lags = LONGEST_LOOP_SECONDS * rate
        self._pulse_lags = round(LONGEST_PULSE_SECONDS * rate)
        self._check_every = LOOK_SECONDS * rate
        self._silence = SILENCE_SECONDS * rate
        tolerance_F = np.where([field.kind == "ordered" for field in mode.fields], mode.levels // 16, 0)
        self._tolerance_FP = tolerance_F.astype(mode.dtype)[:, None]
        self._probes = np.linspace(0, self._window - 1, PROBES).astype(int)
        # Fields first: sums over a few long rows are many times faster than over many short ones.
        self._past_FT = np.zeros((mode.num_fields, self._window + self._lags), mode.dtype)
        self._is_loud = np.zeros(self._past_FT.shape[1], bool)
        # Views: row t has the frames before frame t of the window, the oldest first.
        self._before_FTL = sliding_window_view(self._past_FT, self._lags, axis=1)
        self._was_loud_TL = sliding_window_view(self._is_loud, self._lags)
        self._num_frames = 0
        self._num_quiet = 0
        self.failing: Alarm | None = None

    def update(self, frames: np.ndarray) -> list[Alarm]:
        """Return the failures that begin to show in a block of frames (T, F), the next ones of the stream."""
        alarms = []
        while len(frames):
            block = frames[: self._check_every - self._num_frames % self._check_every]
            frames = frames[len(block) :]
            self._remember(block)
            if self._num_frames % self._check_every == 0:
                found = self._find_failure()
                if found and (self.failing is None or self.failing.kind != found.kind):
                    alarms.append(found)
                    self.failing = found
                elif found is None:
                    self.failing = None
        return alarms

    def _remember(self, block: np.ndarray) -> None:
        is_loud = _is_loud(block, self._mode)
        loud_at = np.flatnonzero(is_loud)
        self._num_quiet = len(block) - 1 - int(loud_at[-1]) if len(loud_at) else self._num_quiet + len(block)
        keep = len(block)
        self._past_FT[:, :-keep] = self._past_FT[:, keep:]
        self._past_FT[:, -keep:] = block.T
        self._is_loud[:-keep] = self._is_loud[keep:]
        self._is_loud[-keep:] = is_loud
        self._num_frames += keep

    def _find_failure(self) -> Alarm | None:
        if self._num_frames <= self._window:
            return None
        similarity, still = self._compare()
        if self._num_quiet >= self._silence or (self._num_quiet >= self._window and still >= STILL):
            return Alarm("silence", self._num_frames - self._num_quiet, self._num_quiet, 0)
        lags = np.flatnonzero(similarity >= MIN_SIMILARITY) + 1
        if len(lags) == 0:
            return None
        # The shortest period: a tone repeats with any.
        lag = int(lags[0])
        kind: Kind = "tone" if lag == 1 else "pulse" if lag <= self._pulse_lags else "loop"
        frames = self._window + lag
        return Alarm(kind, self._num_frames - frames, frames, lag)

    def _compare(self) -> tuple[np.ndarray, float]:
        """Return the similarity of the window to the frames 1, 2, ... frames earlier.

        Returns:
            Similarity for each lag, float64 (lags,) from 0 to 1, over the probes with a loud frame; if these are fewer
            than `MIN_LOUD_PROBES`, the missing ones count as different. And the similarity for a lag of one frame over
            all probes, quiet ones too.
        """
        lags = min(self._lags, self._num_frames - self._window)
        first = self._lags - lags
        now = self._lags + self._probes
        lowest_FP = self._past_FT[:, now] - self._tolerance_FP
        before_FPL = self._before_FTL[:, self._probes, first:]
        # Unsigned: a level below the lowest wraps far above the highest, so one comparison checks both.
        is_same_FPL = before_FPL - lowest_FP[:, :, None] <= 2 * self._tolerance_FP[:, :, None]
        same_PL = is_same_FPL.view(np.uint8).sum(axis=0, dtype=np.uint8)
        loud_PL = self._was_loud_TL[self._probes, first:] | self._is_loud[now, None]
        num_loud = loud_PL.sum(axis=0)
        similarity = (same_PL * loud_PL).sum(axis=0) / (self._mode.num_fields * np.maximum(num_loud, MIN_LOUD_PROBES))
        # The last column is the lag of one frame.
        return similarity[::-1], float(same_PL[:, -1].mean() / self._mode.num_fields)


def _is_loud(frames: np.ndarray, mode: Mode) -> np.ndarray:
    """Return whether each frame is louder than a pause, bool (T,)."""
    columns = mode.group_indices("energy")
    if not columns:
        return np.any(frames[:, mode.group_indices("voicing")] == 1, axis=1)
    return np.any(frames[:, columns] > QUIET * mode.levels[columns], axis=1)
