"""Hears a stream of frames and notices, while it runs, the known ways in which free-running babble fails.

    guard = Guard(mode)
    for block in stream:
        for alarm in guard.update(block): ...

In: frames of any mode, in blocks of any size. Out: an `Alarm` when a failure is noticed; one for as long as it lasts.

Once a second the guard looks back. The last `WINDOW_SECONDS` are compared with what was heard one frame earlier, two
frames, and so on up to `LONGEST_LOOP_SECONDS`; two frames are as alike as the share of their fields that are the same,
give or take a sixteenth of the field's levels (labels, voicing and coarse fields: exactly). Then, the first that holds:

1. silence: every frame quiet for longer than any pause, or for a whole window without even a pause's noise;
2. tone: alike from each frame to the next;
3. pulse: alike after a period of up to `LONGEST_PULSE_SECONDS`;
4. loop: alike after a longer one.

Quiet frames are no evidence of the last three. Modes whose labels hold the energy (2400, 1400, 1200) can't tell a
quiet frame from a loud one: there it is one without voicing, so a pause with a little noise in it is not noticed.
"""

from dataclasses import dataclass

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from babble.codec.frames import Mode

KINDS = ("silence", "tone", "pulse", "loop")

# Calibrated so that no alarm fires on real speech: 13.7 hours of the Tale (parts 1 to 13), 1.6 hours of kathleen and
# 1.2 of margot in mode 1300, and 2.8 hours of the three in each other mode. In brackets what they came up to.

# Shorter windows find slow vowels alike, longer ones notice later.
WINDOW_SECONDS = 4
# Spread over a window: every frame of it would cost three to five times as much.
PROBES = 40
# Slower repetition is heard as a passage that comes again.
LONGEST_PULSE_SECONDS = 0.5
LONGEST_LOOP_SECONDS = 10
LOOK_SECONDS = 1
# Share of fields that are the same, mean over a window (0.84 in a tone of mode 3200, 0.78 in 1300, 0.82 in loops).
ALIKE = 0.9
# A word in a pause is alike to another by chance.
MIN_LOUD_PROBES = 12
# Share of the energy's levels below which a frame is quiet: up to 4 dB, 20 dB in mode 700C.
QUIET = 0.3
# Between two chapters a narrator may be silent for long (10.3).
SILENCE_SECONDS = 15
# The noise of a pause moves on from frame to frame (0.89); a network that fell silent does not.
STILL = 0.97


@dataclass(frozen=True)
class Alarm:
    """A failure that was noticed.

    Attributes:
        kind: one of `KINDS`.
        first_frame: where what shows it began, in frames since the guard began to hear.
        frames: how long it had lasted when it was noticed.
        period_frames: after how many frames it repeats; 1 for a tone, 0 for silence.
    """

    kind: str
    first_frame: int
    frames: int
    period_frames: int


class Guard:
    """Hears one stream.

    Attributes:
        failing: the failure that lasts at this moment, if any.
    """

    def __init__(self, mode: Mode) -> None:
        rate = mode.frames_per_second
        self._mode = mode
        self._window = WINDOW_SECONDS * rate
        self._lags = LONGEST_LOOP_SECONDS * rate
        self._pulse_lags = round(LONGEST_PULSE_SECONDS * rate)
        self._look = LOOK_SECONDS * rate
        self._silence = SILENCE_SECONDS * rate
        tolerance_F = np.where([field.kind == "ordered" for field in mode.fields], mode.levels // 16, 0)
        self._tolerance_FP = tolerance_F.astype(mode.dtype)[:, None]
        self._probes = np.linspace(0, self._window - 1, PROBES).astype(int)
        # Fields first: sums over a few long rows are many times faster than over many short ones.
        self._past_FT = np.zeros((mode.num_fields, self._window + self._lags), mode.dtype)
        self._is_loud = np.zeros(self._past_FT.shape[1], bool)
        # Views: row t of them has what was heard before frame t of the window, the oldest first.
        self._before_FTL = sliding_window_view(self._past_FT, self._lags, axis=1)
        self._was_loud_TL = sliding_window_view(self._is_loud, self._lags)
        self._heard = 0
        self._quiet = 0
        self.failing: Alarm | None = None

    def update(self, frames: np.ndarray) -> list[Alarm]:
        """Return what was noticed in a block of frames (T, F) that continues the stream; nothing of it is changed."""
        alarms = []
        while len(frames):
            block = frames[: self._look - self._heard % self._look]
            frames = frames[len(block) :]
            self._remember(block)
            if self._heard % self._look == 0:
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
        self._quiet = len(block) - 1 - int(loud_at[-1]) if len(loud_at) else self._quiet + len(block)
        keep = len(block)
        self._past_FT[:, :-keep] = self._past_FT[:, keep:]
        self._past_FT[:, -keep:] = block.T
        self._is_loud[:-keep] = self._is_loud[keep:]
        self._is_loud[-keep:] = is_loud
        self._heard += keep

    def _find_failure(self) -> Alarm | None:
        if self._heard <= self._window:
            return None
        alike, still = self._compare()
        if self._quiet >= self._silence or (self._quiet >= self._window and still >= STILL):
            return Alarm("silence", self._heard - self._quiet, self._quiet, 0)
        lags = np.flatnonzero(alike >= ALIKE) + 1
        if len(lags) == 0:
            return None
        # The shortest period: a tone is alike after any.
        lag = int(lags[0])
        kind = "tone" if lag == 1 else "pulse" if lag <= self._pulse_lags else "loop"
        frames = self._window + lag
        return Alarm(kind, self._heard - frames, frames, lag)

    def _compare(self) -> tuple[np.ndarray, float]:
        """Return how alike the window is to what came 1, 2, ... frames earlier, and how still it is, quiet or not.

        Returns:
            float64 (lags,) from 0 to 1: over the probes of which either frame is loud; where
            these are too few, they are filled up with unlike ones.
        """
        lags = min(self._lags, self._heard - self._window)
        first = self._lags - lags
        now = self._lags + self._probes
        lowest_FP = self._past_FT[:, now] - self._tolerance_FP
        before_FPL = self._before_FTL[:, self._probes, first:]
        # Unsigned, what is below the lowest wraps far above the highest: one comparison for both.
        is_same_FPL = before_FPL - lowest_FP[:, :, None] <= 2 * self._tolerance_FP[:, :, None]
        same_PL = is_same_FPL.view(np.uint8).sum(axis=0, dtype=np.uint8)
        loud_PL = self._was_loud_TL[self._probes, first:] | self._is_loud[now, None]
        num_loud = loud_PL.sum(axis=0)
        alike = (same_PL * loud_PL).sum(axis=0) / (self._mode.num_fields * np.maximum(num_loud, MIN_LOUD_PROBES))
        # The last column is the lag of one frame.
        return alike[::-1], float(same_PL[:, -1].mean() / self._mode.num_fields)


def _is_loud(frames: np.ndarray, mode: Mode) -> np.ndarray:
    """Return whether each frame is more than a pause, bool (T,)."""
    columns = mode.group_indices("energy")
    if not columns:
        return np.any(frames[:, mode.group_indices("voicing")] == 1, axis=1)
    return np.any(frames[:, columns] > QUIET * mode.levels[columns], axis=1)
