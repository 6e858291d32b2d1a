"""Metrics by field and group, and the pitch of unvoiced frames."""

import numpy as np
from speech_samples import MODE

from babble.codec.frames import MODES
from babble.evaluation.field_metrics import find_unvoiced_pitch, name_bits, name_errors


def test_pitch_is_unvoiced_if_its_sub_frame_is():
    mode = MODES["1600"]  # v0 v1 Wo_a E_a v2 v3 Wo_b E_b and LSPs
    frames = np.zeros((4, mode.num_fields), np.uint8)
    frames[:, 0] = frames[:, 4] = [1, 0, 1, 0]
    frames[:, 1], frames[:, 5] = [1, 1, 0, 0], [1, 0, 1, 0]
    found = find_unvoiced_pitch(frames, mode)
    assert found is not None
    assert found[:, 2].tolist() == [False, False, True, True]
    assert found[:, 6].tolist() == [False, True, False, True]
    assert not np.delete(found, [2, 6], axis=1).any()


def test_metrics_are_named_by_field_and_group():
    losses_F = np.arange(1.0, 17)
    bits = name_bits(losses_F, 2.0, MODE)
    assert (bits["bits_per_frame"], bits["bits_per_frame_without_unvoiced_pitch"]) == (136, 134)
    assert (bits["bits/voicing"], bits["bits/pitch"], bits["bits_by_field"]["E"]) == (10, 5, 6)
    errors = name_errors(losses_F, MODE)
    assert (errors["error_levels"], errors["error/voicing"], errors["error_by_field"]["lsp9"]) == (8.5, 2.5, 16)
    assert name_errors(losses_F[:4], MODES["700C"]) == {}
