"""The frames of each Codec 2 mode: one table of fields, and conversions between packets, frames and physical units.

Input: the packets of a mode, as Codec 2 stores them. Output: frames, arrays (T, F) of levels.

1. `MODES` lists the fields of each mode in stream order, their bits and kinds, and how the bits are coded.
2. `unpack_packets` and `pack_packets` convert between packets and frames, whole recordings at once.
3. `check_levels` rejects illegal levels before anything is packed or trained on.
4. `pitch_hz`, `energy_db` and `lsp_hz` convert levels to physical units, in the modes that have them.

    mode = get_mode("1300")
    frames = unpack_packets(packets, mode)
    hz = pitch_hz(frames, mode)

Source: Codec 2's src/codec2.c, src/quantise.c and src/newamp1.c; its names are kept (Wo, E, lsp, WoE, vq).
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Literal, get_args

import numpy as np

SAMPLE_RATE_HZ = 8000
MIN_PITCH_HZ = 50.0
MAX_PITCH_HZ = 400.0

Group = Literal["voicing", "pitch", "energy", "lsp", "token", "duration"]
GROUPS: tuple[Group, ...] = get_args(Group)


@dataclass(frozen=True)
class Field:
    """One of a frame's integers.

    Attributes:
        name: its name in Codec 2, with a number or sub-frame letter if there are several.
        bits: its width; the levels are 0 to 2**bits - 1.
        group: what it describes; a joint label of pitch and energy is "pitch", every label of the spectrum "lsp".
        kind: "binary"; "ordered", a quantity with distances between levels; or "label", an index into a codebook.
        sub_frame: the 10 ms of the frame that it describes, counted from 0.
    """

    name: str
    bits: int
    group: Group
    kind: Literal["binary", "ordered", "label"]
    sub_frame: int

    @property
    def levels(self) -> int:
        """Number of levels."""
        return 1 << self.bits


@dataclass(frozen=True)
class Mode:
    """One Codec 2 mode: its fields in stream order and how they are stored.

    Attributes:
        name: its name in Codec 2, which is its bit rate: "1300", "700C".
        header_id: the mode's number in the header of a .c2 file.
        frame_ms: length of a frame in milliseconds.
        is_gray: whether fields wider than one bit are Gray coded in a packet.
        fields: in stream order, without spare bits.
        spare_bits: zeros after the last field that count as bits of the frame.
        warmup_frames: number of frames after which a fresh encoder gives the frames of a continuous one.
        is_encoding_local: whether they are then exactly the same; in predictive modes they differ slightly.
    """

    name: str
    header_id: int
    frame_ms: int
    is_gray: bool
    fields: tuple[Field, ...]
    spare_bits: int = 0
    warmup_frames: int = 8
    is_encoding_local: bool = True

    @cached_property
    def levels(self) -> np.ndarray:
        """Levels of each field, int64 (F,)."""
        return np.array([field.levels for field in self.fields])

    @cached_property
    def dtype(self) -> np.dtype:
        """The smallest unsigned type that holds every level: uint8, or uint16 for modes with 9-bit labels."""
        return np.dtype(np.uint8 if self.levels.max() <= 256 else np.uint16)

    @property
    def num_fields(self) -> int:
        """Number of integers per frame."""
        return len(self.fields)

    @property
    def bits(self) -> int:
        """Bits per frame, with spare bits."""
        return sum(field.bits for field in self.fields) + self.spare_bits

    @property
    def packet_bytes(self) -> int:
        """Bytes per frame in a .c2 file."""
        return (self.bits + 7) // 8

    @property
    def frames_per_second(self) -> int:
        """Frames per second of speech: 25 or 50."""
        return 1000 // self.frame_ms

    @property
    def pcm_per_frame(self) -> int:
        """Values of 8 kHz PCM per frame: 160 or 320."""
        return SAMPLE_RATE_HZ * self.frame_ms // 1000

    def group_indices(self, group: str) -> list[int]:
        """Return the columns of the fields of a group in stream order; empty if the mode has none."""
        return [f for f, field in enumerate(self.fields) if field.group == group]

    @property
    def groups(self) -> list[str]:
        """The groups of this mode's fields, in the order of `GROUPS`."""
        return [group for group in GROUPS if self.group_indices(group)]

    @property
    def has_labels(self) -> bool:
        """Whether any field is a codebook index; a distance between whole frames is meaningless then."""
        return any(field.kind == "label" for field in self.fields)


def _voicing(*sub_frames: int) -> tuple[Field, ...]:
    return tuple(Field(f"v{s}", 1, "voicing", "binary", s) for s in sub_frames)


def _scalars(suffix: str, sub_frame: int) -> tuple[Field, ...]:
    return (
        Field(f"Wo{suffix}", 7, "pitch", "ordered", sub_frame),
        Field(f"E{suffix}", 5, "energy", "ordered", sub_frame),
    )


def _lsps(sub_frame: int) -> tuple[Field, ...]:
    widths = (4, 4, 4, 4, 4, 4, 4, 3, 3, 2)
    return tuple(Field(f"lsp{i}", bits, "lsp", "ordered", sub_frame) for i, bits in enumerate(widths))


def _labels(names: tuple[str, ...], bits: int, group: Group, sub_frame: int) -> tuple[Field, ...]:
    return tuple(Field(name, bits, group, "label", sub_frame) for name in names)


def _labelled_pitches() -> tuple[Field, ...]:
    pitch_a, pitch_b = _labels(("WoE_a",), 8, "pitch", 1), _labels(("WoE_b",), 8, "pitch", 3)
    return (*_voicing(0, 1), *pitch_a, *_voicing(2, 3), *pitch_b)


MODES: dict[str, Mode] = {
    mode.name: mode
    for mode in (
        Mode(
            "3200",
            header_id=0,
            frame_ms=20,
            is_gray=True,
            fields=(*_voicing(0, 1), *_scalars("", 1), *(Field(f"lspd{i}", 5, "lsp", "ordered", 1) for i in range(10))),
        ),
        Mode(
            "2400",
            header_id=1,
            frame_ms=20,
            is_gray=True,
            fields=(*_voicing(0, 1), *_labels(("WoE",), 8, "pitch", 1), *_lsps(1)),
            spare_bits=2,
            warmup_frames=2000,
            is_encoding_local=False,
        ),
        Mode(
            "1600",
            header_id=2,
            frame_ms=40,
            is_gray=True,
            fields=(*_voicing(0, 1), *_scalars("_a", 1), *_voicing(2, 3), *_scalars("_b", 3), *_lsps(3)),
        ),
        Mode(
            "1400",
            header_id=3,
            frame_ms=40,
            is_gray=True,
            fields=(*_labelled_pitches(), *_lsps(3)),
            warmup_frames=2000,
            is_encoding_local=False,
        ),
        Mode(
            "1300",
            header_id=4,
            frame_ms=40,
            is_gray=True,
            fields=(*_voicing(0, 1, 2, 3), *_scalars("", 3), *_lsps(3)),
        ),
        Mode(
            "1200",
            header_id=5,
            frame_ms=40,
            is_gray=True,
            fields=(*_labelled_pitches(), *_labels(("vq0", "vq1", "vq2"), 9, "lsp", 3)),
            spare_bits=1,
            warmup_frames=2000,
            is_encoding_local=False,
        ),
        Mode(
            "700C",
            header_id=8,
            frame_ms=40,
            is_gray=False,
            fields=(
                *_labels(("vq0", "vq1"), 9, "lsp", 3),
                Field("energy", 4, "energy", "ordered", 3),
                # Level 0 means "unvoiced"; 1 to 63 are ordered.
                Field("Wo", 6, "pitch", "ordered", 3),
            ),
        ),
    )
}


# Not of Codec 2: tokens with durations, found by `babble tokens`, stored and modelled like frames. They have no sound.
_TOKEN_FIELDS = Field("token", 9, "token", "label", 0), Field("duration", 4, "duration", "ordered", 0)
TOKENS = Mode("tokens", header_id=200, frame_ms=80, is_gray=False, fields=_TOKEN_FIELDS)


def get_mode(name: str | int) -> Mode:
    """Return a mode by its name.

    Args:
        name: one of `MODES`, also as a number (as YAML reads 1300), and 700 for 700C.

    Raises:
        ValueError: unknown mode.
    """
    key = "700C" if str(name).upper() in ("700", "700C") else str(name)
    if key == TOKENS.name:
        return TOKENS
    if key not in MODES:
        raise ValueError(f"mode {name!r} must be one of Codec 2's: {', '.join(MODES)}.")
    return MODES[key]


def check_levels(frames: np.ndarray, mode: Mode, where: str) -> None:
    """Raise if frames contain anything that is not a level of `mode`.

    Args:
        frames: integers (T, F).
        mode: the expected mode.
        where: origin of the frames for the message: a path or "generated frames".

    Raises:
        ValueError: wrong shape or type, or an illegal level; the message names frame and field.
    """
    if frames.ndim != 2 or frames.shape[1] != mode.num_fields:
        raise ValueError(
            f"{where}: frames have shape {frames.shape}, but mode {mode.name} has {mode.num_fields} fields per "
            f"frame, so (frames, {mode.num_fields}) was expected. Was it made with another mode?"
        )
    if not np.issubdtype(frames.dtype, np.integer):
        raise ValueError(f"{where}: frames are {frames.dtype}, but levels are integers.")
    # Nearly always all levels are legal, and the maximum of each column is far cheaper than comparing every level.
    if len(frames) == 0 or ((frames.max(axis=0) < mode.levels).all() and frames.min() >= 0):
        return
    t, f = np.argwhere((frames < 0) | (frames >= mode.levels))[0]
    field = mode.fields[f]
    raise ValueError(
        f"{where}: frame {t} has {field.name}={frames[t, f]}, but in mode {mode.name} {field.name} has "
        f"{field.levels} levels (0 to {field.levels - 1}). Was it made with another mode, or damaged?"
    )


def unpack_packets(packets: bytes, mode: Mode) -> np.ndarray:
    """Return the frames held in Codec 2 packets.

    Args:
        packets: whole packets of `mode`, one after another.

    Returns:
        uint8 or uint16 array (T, F); column f counts from 0 to levels[f] - 1 in natural binary, one row per frame.

    Raises:
        ValueError: the length is not a whole number of packets.

    Source: bit order of `codec2_encode_1300` and the like in Codec 2's src/codec2.c: most significant bit first;
    fields are Gray coded, except in 700C.
    """
    if len(packets) % mode.packet_bytes:
        raise ValueError(
            f"{len(packets)} bytes are not a whole number of packets: mode {mode.name} needs {mode.packet_bytes} each."
        )
    packets_TP = np.frombuffer(packets, np.uint8).reshape(-1, mode.packet_bytes)
    # No mode has more than 64 bits per frame: a packet fits in one big-endian word.
    padded_TP = np.zeros((len(packets_TP), 8), np.uint8)
    padded_TP[:, : mode.packet_bytes] = packets_TP
    words_T = padded_TP.view(">u8")[:, 0].astype(np.uint64)
    ends_F = np.cumsum([field.bits for field in mode.fields]).astype(np.uint64)
    masks_F = np.array([(1 << field.bits) - 1 for field in mode.fields], np.uint64)
    frames = ((words_T[:, None] >> (64 - ends_F)) & masks_F).astype(mode.dtype)
    if mode.is_gray:
        # A Gray coded bit is set where the natural bit differs from the one above it.
        for shift in (1, 2, 4, 8):
            frames ^= frames >> shift
    return frames


def pack_packets(frames: np.ndarray, mode: Mode) -> bytes:
    """Return the Codec 2 packets of frames: the inverse of `unpack_packets`, spare and pad bits zero.

    Raises:
        ValueError: a level that the mode does not have.
    """
    check_levels(frames, mode, "frames to pack")
    bits_TN = np.zeros((len(frames), 8 * mode.packet_bytes), np.uint8)
    start = 0
    for f, field in enumerate(mode.fields):
        level = frames[:, f]
        if mode.is_gray:
            level = level ^ (level >> 1)
        for n in range(field.bits):
            bits_TN[:, start + n] = (level >> (field.bits - 1 - n)) & 1
        start += field.bits
    return np.packbits(bits_TN, axis=1).tobytes()


def _column(frames: np.ndarray, mode: Mode, name: str) -> np.ndarray:
    return frames[:, [field.name for field in mode.fields].index(name)].astype(np.float64)


def is_voiced(frames: np.ndarray, mode: Mode) -> np.ndarray:
    """Return whether the sub-frame of each frame's last pitch value is voiced, bool (T,)."""
    if mode.name == "700C":
        return _column(frames, mode, "Wo") > 0
    return frames[:, mode.group_indices("voicing")[-1]] == 1


def pitch_hz(frames: np.ndarray, mode: Mode) -> np.ndarray | None:
    """Return the fundamental frequency of each frame's last sub-frame in Hz, float64 (T,), NaN where it is unvoiced.

    None in the modes with a joint label of pitch and energy (2400, 1400, 1200), because pycodec2 does not expose their
    codebook.
    """
    if mode.name == "700C":
        hz = MIN_PITCH_HZ * (MAX_PITCH_HZ / MIN_PITCH_HZ) ** (_column(frames, mode, "Wo") / 64)
    elif any(field.group == "pitch" and field.kind == "label" for field in mode.fields):
        return None
    else:
        name = mode.fields[mode.group_indices("pitch")[-1]].name
        hz = MIN_PITCH_HZ + _column(frames, mode, name) * (MAX_PITCH_HZ - MIN_PITCH_HZ) / 128
    return np.where(is_voiced(frames, mode), hz, np.nan)


def energy_db(frames: np.ndarray, mode: Mode) -> np.ndarray | None:
    """Return the energy of each frame's last sub-frame in dB, float64 (T,); None in modes that code it as a label.

    It is the energy of the LPC residual (700C: the mean of the log spectrum), not the loudness.
    """
    columns = mode.group_indices("energy")
    if not columns:
        return None
    level = frames[:, columns[-1]].astype(np.float64)
    return 10 + 2.5 * level if mode.name == "700C" else -10 + level * 50 / 32


# First value and step in Hz of each scalar LSP. Source: Codec 2's src/codebook/lsp1.txt to lsp10.txt.
_LSP_FIRST_HZ = np.array([225, 325, 500, 700, 950, 1100, 1500, 2300, 2500, 2900])
_LSP_STEP_HZ = np.array([25, 25, 50, 100, 100, 100, 100, 100, 100, 200])
# LSP differences of mode 3200 have steps of 25 Hz, dlsp4 to dlsp6 of 50 Hz above 200 Hz.
_FINE_DIFFERENCE_HZ = np.arange(1, 33) * 25
_COARSE_DIFFERENCE_HZ = np.concatenate([np.arange(1, 9) * 25, 250 + np.arange(24) * 50])


def lsp_hz(frames: np.ndarray, mode: Mode) -> np.ndarray | None:
    """Return the ten line spectral pairs of each frame in Hz, float64 (T, 10); None in modes that code them as labels.

    These are the values of the levels, before the decoder repairs their order.
    """
    columns = mode.group_indices("lsp")
    if any(mode.fields[f].kind == "label" for f in columns):
        return None
    levels_TF = frames[:, columns]
    if mode.name == "3200":
        tables = [_COARSE_DIFFERENCE_HZ if 3 <= i <= 5 else _FINE_DIFFERENCE_HZ for i in range(10)]
        return np.cumsum([table[levels_TF[:, i]] for i, table in enumerate(tables)], axis=0).T.astype(np.float64)
    return _LSP_FIRST_HZ + levels_TF * _LSP_STEP_HZ.astype(np.float64)


def has_disordered_lsps(frames: np.ndarray, mode: Mode) -> np.ndarray | None:
    """Return whether each frame's LSPs are out of order, so that the decoder must repair them, bool (T,).

    It is rare in speech (0.03 % of a long narration at 1300), so it measures the quality of sampled frames. None in
    modes that code the LSPs as labels, and in 3200, where the differences are always positive.

    Source: `check_lsp_order` in Codec 2's src/quantise.c.
    """
    lsp = lsp_hz(frames, mode)
    if lsp is None or mode.name == "3200":
        return None
    return np.any(np.diff(lsp, axis=1) < 0, axis=1)
