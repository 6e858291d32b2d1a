"""Phones are counted at the rate of speech."""

import numpy as np
import pytest
from speech_samples import real_pcm

from babble.evaluation.phones import PhoneCounter


def test_phones_are_counted_at_the_rate_of_speech():
    pytest.importorskip("pocketsphinx", reason="pocketsphinx is not installed (the extra `listen`)")
    pcm, counter = real_pcm(10), PhoneCounter()
    first = counter.count_phones(pcm)
    assert 5 < first / 10 < 10
    assert counter.count_phones(np.zeros(8000 * 2, np.int16)) == 0
    # The decoder carries no state from clip to clip.
    assert counter.count_phones(pcm) == pytest.approx(first, abs=2)
