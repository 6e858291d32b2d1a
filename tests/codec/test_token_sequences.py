"""Tokens of frames and tokens with durations are two forms of the same."""

import numpy as np
import pytest

from babble.codec.codec2 import c2_header, parse_c2
from babble.codec.frames import TOKENS, check_levels, get_mode, pack_packets, unpack_packets
from babble.codec.token_sequences import MAX_DURATION, join_tokens, make_context, spread_tokens


@pytest.mark.parametrize("tokens", [[7], [3, 3, 3, 1, 1, 500, 3], [4] * 50, [2] * MAX_DURATION + [5], []])
def test_joined_tokens_spread_to_the_same(tokens: list[int]) -> None:
    sequence = join_tokens(np.array(tokens, np.int64))
    check_levels(sequence, TOKENS, "tokens")
    assert spread_tokens(sequence).tolist() == tokens
    assert all(np.diff(sequence[:, 0].astype(int)) | (sequence[:-1, 1] == MAX_DURATION - 1)), "equal ones are joined"


def test_the_context_of_a_frame_is_what_a_loop_finds() -> None:
    rng = np.random.default_rng(0)
    sequence = np.stack([rng.integers(0, 9, 30), rng.integers(0, 5, 30)], axis=1).astype(TOKENS.dtype)
    expected = []
    for n, (token, duration) in enumerate(sequence.tolist()):
        following = sequence[min(n + 1, 29), 0]
        expected += [[token, following, duration - since, since] for since in range(duration + 1)]
    assert make_context(sequence).tolist() == expected
    assert make_context(sequence[:0]).shape == (0, 4)


def test_tokens_are_stored_like_frames() -> None:
    sequence = np.array([[0, 0], [511, 15], [300, 7]], TOKENS.dtype)
    packets = pack_packets(sequence, TOKENS)
    found, mode = parse_c2(c2_header(TOKENS) + packets, "tokens")
    assert mode == TOKENS == get_mode("tokens")
    assert (unpack_packets(found, mode) == sequence).all()
