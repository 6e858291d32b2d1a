"""Alarms of whole recordings, and the time spent in them."""

import numpy as np
import pytest
from speech_samples import MODE, RATE, E, random_frames, real_pcm

from babble.codec.codec2 import encode_pcm
from babble.codec.frames import unpack_packets
from babble.evaluation.alarms import count_alarms


def test_alarms_and_their_share_of_the_time_are_counted():
    tone = np.tile(unpack_packets(encode_pcm(real_pcm(2), MODE), MODE)[20:21], (20 * RATE, 1))
    tone[:, E] = 20
    babble = random_frames(20 * RATE, 12)
    babble[:, E] += 15
    alarms, time_in_alarm = count_alarms([tone, babble], MODE)
    assert alarms == {"silence": 0, "tone": 1, "pulse": 0, "loop": 0}
    # Noticed from the fifth second on, in one of two recordings.
    assert time_in_alarm == pytest.approx(16 / 40)
