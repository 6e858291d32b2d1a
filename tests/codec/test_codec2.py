"""PCM <-> packets, and .c2 and .c2cb files, compared with Codec 2's own programs on real speech."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from paths import SPEECH, TALE

from babble.codec.codec2 import (
    C2_HEADER_BYTES,
    Decoder,
    c2_header,
    decode_frames,
    decode_packets,
    encode_pcm,
    parse_c2,
    parse_c2cb,
    read_c2,
    read_c2cb,
    silence_frame,
    write_c2,
)
from babble.codec.frames import MODES, Mode, get_mode, pack_packets, unpack_packets
from preprocessing.audio import open_recording

RECORDING = SPEECH / "allison-01.ogg"
ALL_MODES = pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
needs_codec2 = pytest.mark.skipif(not shutil.which("c2enc") or not shutil.which("c2dec"), reason="no c2enc and c2dec")


@pytest.fixture(scope="module")
def speech() -> np.ndarray:
    """Half a minute of real speech, int16 at 8 kHz."""
    with open_recording(RECORDING) as recording:
        return np.concatenate(list(recording.pcm_blocks()))[: 30 * 8000]


def decode_with_c2dec(mode: Mode, path: Path, decoded: Path) -> np.ndarray:
    # By its whole name: newer versions of c2dec have several modes of 700 bit/s.
    done = subprocess.run(["c2dec", mode.name, path, decoded], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return np.fromfile(decoded, np.int16)


def decode_in_fresh_process(path: Path, decoded: Path, frames_per_call: int = 1 << 30) -> np.ndarray:
    # The library takes unvoiced phases from one random generator per process: only a fresh process repeats them.
    code = """
import sys
from babble.codec.codec2 import *
frames, mode = read_c2(Path(sys.argv[1]))
decoder, step = Decoder(mode), int(sys.argv[3])
parts = [decoder.decode(pack_packets(frames[t : t + step], mode)) for t in range(0, len(frames), step)]
np.concatenate(parts).tofile(sys.argv[2])
"""
    subprocess.run([sys.executable, "-c", code, path, decoded, str(frames_per_call)], check=True)
    return np.fromfile(decoded, np.int16)


@needs_codec2
@ALL_MODES
def test_our_decode_of_speech_matches_c2dec(mode: Mode, speech: np.ndarray, tmp_path: Path) -> None:
    path = tmp_path / "speech.c2"
    frames = unpack_packets(encode_pcm(speech, mode), mode)
    write_c2(path, frames, mode)
    np.testing.assert_array_equal(read_c2(path)[0], frames)
    ours = decode_in_fresh_process(path, tmp_path / "ours.raw")
    theirs = decode_with_c2dec(mode, path, tmp_path / "theirs.raw")
    assert len(theirs) == len(ours) == len(frames) * mode.pcm_per_frame
    # Compilers round floats differently, which may flip a phase: the same speech, not always the same bits.
    assert np.corrcoef(ours, theirs)[0, 1] > 0.99
    # It is the speech that was encoded: its loudness follows that of the original.
    step = 400
    energy = [
        np.log(1 + np.abs(pcm[: len(pcm) // step * step].reshape(-1, step).astype(float)).mean(axis=1))
        for pcm in (speech[: len(theirs)], theirs)
    ]
    assert np.corrcoef(*energy)[0, 1] > 0.8


@needs_codec2
@ALL_MODES
def test_c2enc_gives_the_same_frames(mode: Mode, speech: np.ndarray, tmp_path: Path) -> None:
    speech.tofile(tmp_path / "speech.raw")
    path = tmp_path / "speech.c2"
    subprocess.run(["c2enc", mode.name, tmp_path / "speech.raw", path], check=True, capture_output=True)
    theirs, found = read_c2(path)
    assert found == mode
    ours = unpack_packets(encode_pcm(speech, mode), mode)
    assert len(ours) == len(theirs)
    # Two builds of the library round floats differently, which changes a level now and then.
    assert (ours == theirs).mean() > 0.99


@ALL_MODES
def test_after_the_warm_up_a_fresh_encoder_gives_the_frames_of_a_continuous_one(mode: Mode, speech: np.ndarray) -> None:
    whole = encode_pcm(speech, mode)
    differing = []
    for cut in range(50, 450, 50):
        late = encode_pcm(speech[cut * mode.pcm_per_frame :], mode)
        skipped = mode.warmup_frames if mode.is_encoding_local else 0
        after = slice(skipped * mode.packet_bytes, None)
        differing.append(late[after] != whole[cut * mode.packet_bytes :][after])
    # In predictive modes frames near a cut do differ.
    assert not any(differing) if mode.is_encoding_local else all(differing)


@ALL_MODES
def test_a_remainder_shorter_than_a_frame_is_dropped(mode: Mode, speech: np.ndarray) -> None:
    whole = speech[: 10 * mode.pcm_per_frame]
    longer = speech[: 11 * mode.pcm_per_frame - 1]
    assert encode_pcm(longer, mode) == encode_pcm(whole, mode)
    assert len(encode_pcm(longer, mode)) == 10 * mode.packet_bytes
    assert encode_pcm(speech[:100], mode) == b""


def test_a_strided_array_is_read_correctly(speech: np.ndarray) -> None:
    mode = get_mode("1300")
    stereo = np.stack([speech, np.zeros_like(speech)], axis=1)
    assert encode_pcm(stereo[:, 0], mode) == encode_pcm(speech, mode)


@pytest.mark.parametrize(
    "pcm", [np.zeros(320, np.float32), np.zeros((2, 320), np.int16), np.zeros(320, np.int32)], ids=str
)
def test_pcm_of_another_shape_or_type_is_rejected(pcm: np.ndarray) -> None:
    with pytest.raises(ValueError, match="Codec 2 reads one channel of int16"):
        encode_pcm(pcm, get_mode("1300"))


def test_decoding_in_parts_carries_the_state(tmp_path: Path, speech: np.ndarray) -> None:
    mode = get_mode("1300")
    path = tmp_path / "speech.c2"
    write_c2(path, unpack_packets(encode_pcm(speech[:80000], mode), mode), mode)
    whole = decode_in_fresh_process(path, tmp_path / "whole.raw")
    parts = decode_in_fresh_process(path, tmp_path / "parts.raw", frames_per_call=7)
    np.testing.assert_array_equal(parts, whole)
    with pytest.raises(ValueError, match="not a whole number of packets of 7"):
        Decoder(mode).decode(bytes(8))


def test_no_packets_give_no_pcm() -> None:
    assert len(decode_packets(b"", get_mode("1300"))) == 0


def test_silence_is_not_the_all_zero_frame() -> None:
    mode = get_mode("1300")
    first = unpack_packets(encode_pcm(np.zeros(320, np.int16), mode), mode)[0]
    # A fresh encoder's first frame of silence is voiced.
    assert first.tolist() == [1, 1, 1, 0, 3, 0, 0, 3, 6, 5, 6, 9, 9, 5, 7, 3]
    assert silence_frame(mode).tolist() == [0, 0, 0, 0, 3, 0, 0, 3, 6, 5, 6, 9, 9, 5, 7, 3]


@ALL_MODES
def test_silence_stays_silence_in_every_mode(mode: Mode) -> None:
    pcm = decode_frames(np.tile(silence_frame(mode), (50, 1)), mode)
    assert np.abs(pcm[-8000:].astype(float)).mean() < 100


@ALL_MODES
def test_random_frames_never_crash_the_decoder(mode: Mode) -> None:
    random = np.random.default_rng(0)
    frames = random.integers(0, mode.levels, (100, mode.num_fields)).astype(mode.dtype)
    assert len(decode_frames(frames, mode)) == 100 * mode.pcm_per_frame


@ALL_MODES
def test_a_c2_file_starts_with_its_mode(mode: Mode, tmp_path: Path) -> None:
    frames = np.tile(silence_frame(mode), (3, 1))
    write_c2(tmp_path / "a.c2", frames, mode)
    data = (tmp_path / "a.c2").read_bytes()
    assert data[:C2_HEADER_BYTES] == c2_header(mode) == bytes([0xC0, 0xDE, 0xC2, 1, 2, mode.header_id, 0])
    packets, found = parse_c2(data, "a")
    assert found == mode
    assert packets == pack_packets(frames, mode)


@pytest.mark.parametrize(
    ("data", "cause"),
    [
        (b"", "does not start with Codec 2's header"),
        (b"RIFF....", "does not start with Codec 2's header"),
        (bytes.fromhex("c0dec2010209 00"), "unknown mode number 9"),
        (bytes.fromhex("c0dec201020401"), "flags 0x1"),
        (bytes.fromhex("c0dec201020400 c0dec201020800"), "several files joined, of mode numbers 4 and 8"),
        (bytes.fromhex("c0dec201020400") + bytes(9) + bytes.fromhex("c0dec201020400"), "truncated: 9"),
        (bytes.fromhex("c0dec201020400") + bytes(8), "truncated: 8 bytes are not a whole number of packets of 7"),
    ],
)
def test_a_file_that_is_not_c2_is_rejected_by_name(data: bytes, cause: str) -> None:
    with pytest.raises(ValueError, match=f"^some.c2: .*{cause}"):
        parse_c2(data, "some.c2")


@ALL_MODES
def test_joined_c2_files_are_read_one_after_another(mode: Mode) -> None:
    random = np.random.default_rng(0)
    parts = [pack_packets(random.integers(0, mode.levels, (3, mode.num_fields)), mode) for _ in range(3)]
    other_version = bytes([0xC0, 0xDE, 0xC2, 1, 0, mode.header_id, 0])
    data = c2_header(mode) + parts[0] + other_version + parts[1] + c2_header(mode) + parts[2]
    assert parse_c2(data, "a") == (b"".join(parts), mode)


def test_a_2017_corpus_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.c2cb"
    path.write_bytes(bytes([1, 0, 1, 1, 127, 31, *range(10, 16), 0, 7, 6, 3]) + bytes(16))
    frames = read_c2cb(path, get_mode("1300"))
    assert frames.tolist() == [[1, 0, 1, 1, 127, 31, *range(10, 16), 0, 7, 6, 3], [0] * 16]
    # The two voicing bits of mode 3200 are one value.
    path.write_bytes(b"".join(bytes([voicing, 127, *range(11)]) for voicing in range(4)))
    frames = read_c2cb(path, get_mode("3200"))
    assert frames[:, :2].tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]
    assert frames[:, 2:].tolist() == 4 * [[127, *range(11)]]


def test_2017_corpora_of_other_modes_or_damaged_ones_are_rejected() -> None:
    with pytest.raises(ValueError, match="mode 1300 or 3200, not 1200"):
        parse_c2cb(b"", get_mode("1200"), "a.c2cb")
    with pytest.raises(ValueError, match=r"a\.c2cb: truncated: 17 bytes are not a whole number of 16-byte frames"):
        parse_c2cb(bytes(17), get_mode("1300"), "a.c2cb")
    with pytest.raises(ValueError, match=r"a\.c2cb: frame 1 has v0=9"):
        parse_c2cb(bytes(16) + bytes([9]) + bytes(15), get_mode("1300"), "a.c2cb")
    with pytest.raises(ValueError, match="voicing is 4, but the range of two voicing bits is 0 to 3"):
        parse_c2cb(bytes([4]) + bytes(12), get_mode("3200"), "a.c2cb")


@pytest.mark.skipif(not TALE.is_dir(), reason="the Tale corpus is not at hand")
def test_the_corpus_of_2017_has_the_length_and_statistics_of_its_readme() -> None:
    frames = read_c2cb(TALE / "part-14.c2cb", get_mode("1300"))
    assert frames.shape == (107_233, 16)
    energy = frames[:, 5].astype(float)
    # Read as Gray code it would be 0.62.
    assert np.corrcoef(energy[1:], energy[:-1])[0, 1] == pytest.approx(0.76, abs=0.01)
