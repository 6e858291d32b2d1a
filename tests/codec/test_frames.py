"""The table of modes, packets <-> frames, the check of levels, and physical units."""

import numpy as np
import pycodec2
import pytest

from babble.codec.frames import (
    MODES,
    Mode,
    check_levels,
    energy_db,
    get_mode,
    has_disordered_lsps,
    is_voiced,
    lsp_hz,
    pack_packets,
    pitch_hz,
    unpack_packets,
)

ALL_MODES = pytest.mark.parametrize("mode", MODES.values(), ids=MODES)


def open_codec(mode: Mode) -> pycodec2.Codec2:
    return pycodec2.Codec2(700 if mode.name == "700C" else int(mode.name))


def make_frames(mode: Mode, num_frames: int, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    return random.integers(0, mode.levels, (num_frames, mode.num_fields)).astype(mode.dtype)


def encode_noise_and_sweep(mode: Mode) -> bytes:
    random = np.random.default_rng(1)
    seconds = np.arange(16000) / 8000
    sweep = np.sin(2 * np.pi * (100 * seconds + 400 * seconds**2)) * 9000
    noise = random.normal(0, 3000, 16000)
    pcm = np.concatenate([sweep, noise, sweep + noise]).astype(np.int16)
    codec = open_codec(mode)
    step = codec.samples_per_frame()
    return b"".join(codec.encode(pcm[start : start + step]) for start in range(0, len(pcm) - step + 1, step))


def unpack_slowly(packets: bytes, mode: Mode) -> list[list[int]]:
    """The reference: the whole packet as one integer, one field after another."""
    frames = []
    for start in range(0, len(packets), mode.packet_bytes):
        value = int.from_bytes(packets[start : start + mode.packet_bytes], "big")
        left = 8 * mode.packet_bytes
        frame = []
        for field in mode.fields:
            left -= field.bits
            level = value >> left & (field.levels - 1)
            shift = 1
            while mode.is_gray and shift < field.bits:
                level ^= level >> shift
                shift *= 2
            frame.append(level)
        frames.append(frame)
    return frames


@ALL_MODES
def test_sizes_of_a_mode_match_codec_2(mode: Mode) -> None:
    codec = open_codec(mode)
    assert mode.bits == codec.bits_per_frame()
    assert mode.packet_bytes == codec.bytes_per_frame()
    assert mode.pcm_per_frame == codec.samples_per_frame()
    assert mode.frames_per_second * mode.frame_ms == 1000


def test_1300_has_the_fields_of_2017() -> None:
    mode = get_mode("1300")
    assert mode.levels.tolist() == [2, 2, 2, 2, 128, 32, 16, 16, 16, 16, 16, 16, 16, 8, 8, 4]
    assert mode.dtype == np.uint8
    assert [f.name for f in mode.fields[:6]] == ["v0", "v1", "v2", "v3", "Wo", "E"]


@ALL_MODES
def test_every_field_is_in_one_group(mode: Mode) -> None:
    columns = [f for group in mode.groups for f in mode.group_indices(group)]
    assert sorted(columns) == list(range(mode.num_fields))


@ALL_MODES
def test_packets_unpack_as_in_the_reference_and_pack_to_the_same_bytes(mode: Mode) -> None:
    packets = encode_noise_and_sweep(mode)
    frames = unpack_packets(packets, mode)
    assert frames.dtype == mode.dtype
    assert frames.tolist() == unpack_slowly(packets, mode)
    assert pack_packets(frames, mode) == packets


@ALL_MODES
def test_any_legal_frames_survive_the_round_trip_and_spare_bits_are_zero(mode: Mode) -> None:
    frames = make_frames(mode, 500)
    packets = pack_packets(frames, mode)
    np.testing.assert_array_equal(unpack_packets(packets, mode), frames)
    bits = np.unpackbits(np.frombuffer(packets, np.uint8).reshape(500, -1), axis=1)
    assert not bits[:, sum(field.bits for field in mode.fields) :].any()


def test_natural_packets_of_the_codec_are_the_same_frames() -> None:
    # With Gray coding switched off, the codec sends the same levels in natural binary.
    mode = get_mode("1300")
    random = np.random.default_rng(2)
    gray, natural = open_codec(mode), open_codec(mode)
    natural.set_natural_or_gray(0)
    for _ in range(50):
        pcm = random.normal(0, 4000, mode.pcm_per_frame).astype(np.int16)
        levels = unpack_packets(gray.encode(pcm), mode)[0]
        value = int.from_bytes(natural.encode(pcm), "big") >> (8 * mode.packet_bytes - mode.bits)
        for f in reversed(range(mode.num_fields)):
            assert value & (int(mode.levels[f]) - 1) == levels[f]
            value >>= mode.fields[f].bits


def test_no_frames_give_no_packets() -> None:
    for mode in MODES.values():
        assert unpack_packets(b"", mode).shape == (0, mode.num_fields)
        assert pack_packets(np.empty((0, mode.num_fields), mode.dtype), mode) == b""


def test_part_of_a_packet_is_rejected() -> None:
    with pytest.raises(ValueError, match=r"8 bytes are not a whole number of packets: mode 1300 needs 7"):
        unpack_packets(bytes(8), get_mode("1300"))


@pytest.mark.parametrize("name", [1300, "1300", "700C", "700c", 700, "700"])
def test_a_mode_is_found_by_name_or_number(name: str | int) -> None:
    assert get_mode(name).name == ("1300" if "13" in str(name) else "700C")


@pytest.mark.parametrize("name", ["450", 1301, "", "13"])
def test_an_unknown_mode_is_rejected(name: str | int) -> None:
    with pytest.raises(ValueError, match="must be one of Codec 2's: 3200, 2400"):
        get_mode(name)


@ALL_MODES
def test_a_level_just_out_of_range_is_rejected_in_every_field(mode: Mode) -> None:
    for f, field in enumerate(mode.fields):
        frames = np.zeros((5, mode.num_fields), np.int64)
        frames[3, f] = field.levels - 1
        check_levels(frames, mode, "here")
        frames[3, f] = field.levels
        with pytest.raises(ValueError, match=rf"here: frame 3 has {field.name}={field.levels}, but .*\(0 to "):
            check_levels(frames, mode, "here")
        with pytest.raises(ValueError, match=f"frame 3 has {field.name}={field.levels}"):
            pack_packets(frames, mode)
        frames[3, f] = -1
        with pytest.raises(ValueError, match=f"frame 3 has {field.name}=-1"):
            check_levels(frames, mode, "here")


def test_other_shapes_and_types_are_rejected() -> None:
    mode = get_mode("1300")
    with pytest.raises(ValueError, match=r"shape \(4, 14\), but mode 1300 has 16 fields"):
        check_levels(np.zeros((4, 14), np.uint8), mode, "here")
    with pytest.raises(ValueError, match=r"shape \(16,\)"):
        check_levels(np.zeros(16, np.uint8), mode, "here")
    with pytest.raises(ValueError, match="float64, but levels are integers"):
        check_levels(np.zeros((4, 16)), mode, "here")


@pytest.mark.parametrize("name", ["3200", "1600", "1300"])
def test_energy_matches_the_codec_at_every_level(name: str) -> None:
    mode = get_mode(name)
    codec = open_codec(mode)
    for level in range(32):
        frame = np.zeros((1, mode.num_fields), mode.dtype)
        frame[:, mode.group_indices("energy")] = level
        packet = np.frombuffer(pack_packets(frame, mode), np.uint8)
        energy = energy_db(frame, mode)
        assert energy is not None
        assert energy[0] == pytest.approx(10 * np.log10(codec.get_energy(packet)), abs=1e-4)


def test_units_match_codec_2s_tables() -> None:
    mode = get_mode("1300")
    frames = np.zeros((2, 16), np.uint8)
    frames[:, 3] = 1
    frames[1] = mode.levels - 1
    pitch, lsp = pitch_hz(frames, mode), lsp_hz(frames, mode)
    assert pitch is not None
    assert lsp is not None
    assert pitch.tolist() == pytest.approx([50.0, 397.265625])
    assert lsp[0].tolist() == [225, 325, 500, 700, 950, 1100, 1500, 2300, 2500, 2900]
    assert lsp[1].tolist() == [600, 700, 1250, 2200, 2450, 2600, 3000, 3000, 3200, 3500]


def test_lsp_differences_of_3200_add_up() -> None:
    mode = get_mode("3200")
    frames = np.zeros((2, 14), np.uint8)
    frames[1, mode.group_indices("lsp")] = 31
    lsp = lsp_hz(frames, mode)
    assert lsp is not None
    assert lsp[0].tolist() == [25 * i for i in range(1, 11)]
    assert lsp[1, -1] == 9800
    assert has_disordered_lsps(frames, mode) is None


@ALL_MODES
def test_units_are_none_where_a_mode_codes_them_as_labels(mode: Mode) -> None:
    frames = make_frames(mode, 20)
    pitch, energy, lsp = pitch_hz(frames, mode), energy_db(frames, mode), lsp_hz(frames, mode)
    assert (pitch is None) == (mode.name in ("2400", "1400", "1200"))
    assert (energy is None) == (mode.name in ("2400", "1400", "1200"))
    assert (lsp is None) == (mode.name in ("1200", "700C"))
    if pitch is not None:
        np.testing.assert_array_equal(np.isnan(pitch), ~is_voiced(frames, mode))
        assert np.nanmin(pitch) >= 50
        assert np.nanmax(pitch) <= 400


def test_pitch_0_of_700c_means_unvoiced() -> None:
    mode = get_mode("700C")
    frames = np.array([[0, 0, 0, 0], [0, 0, 15, 1], [0, 0, 0, 63]], np.uint16)
    assert is_voiced(frames, mode).tolist() == [False, True, True]
    pitch, energy = pitch_hz(frames, mode), energy_db(frames, mode)
    assert pitch is not None
    assert energy is not None
    assert pitch[1:].tolist() == pytest.approx([50 * 8 ** (1 / 64), 50 * 8 ** (63 / 64)])
    assert energy.tolist() == [10, 47.5, 10]


def test_equal_lsps_are_in_order() -> None:
    mode = get_mode("1300")
    frames = np.zeros((3, 16), np.uint8)
    lsp = frames[:, mode.group_indices("lsp")[0] :]
    lsp[1, :2] = [4, 0]  # 325 and 325 Hz
    lsp[2, :2] = [5, 0]  # 350 and 325 Hz
    disordered = has_disordered_lsps(frames, mode)
    assert disordered is not None
    assert disordered.tolist() == [False, False, True]
