"""Failure alarms of whole recordings: silence, held tone, pulse and loop (see babble.codec.failures).

alarms, share_of_time = count_alarms(streams, mode)
"""

import numpy as np

from babble.codec.failures import KINDS, LOOK_SECONDS, Guard
from babble.codec.frames import Mode


def count_alarms(recordings: list[np.ndarray], mode: Mode) -> tuple[dict[str, int], float]:
    """Return the number of alarms of each kind in recordings (T, F), and the share of their time spent in alarm."""
    alarms = dict.fromkeys(KINDS, 0)
    step, num_looks, num_failing = LOOK_SECONDS * mode.frames_per_second, 0, 0
    for frames in recordings:
        guard = Guard(mode)
        for start in range(0, len(frames), step):
            for alarm in guard.update(frames[start : start + step]):
                alarms[alarm.kind] += 1
            num_looks += 1
            num_failing += guard.failing is not None
    return alarms, num_failing / max(1, num_looks)
