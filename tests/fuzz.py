"""Thousands of damaged recordings of every format through the decoder of preprocessing, in one process: `make fuzz`.

    python tests/fuzz.py --inputs 6000 --seed 0

Each input is a short recording with bytes flipped, zeroed, removed, inserted from another file, or with the header of
another format. It must be read or refused with a cause within 10 seconds; what is read must have as many seconds as the
packets that ffprobe counts, to 1 % and half a second. Prints counts, and exits with 1 if an input fails; its file is
kept. Not part of `make test`: it takes minutes.
"""

import argparse
import collections
import faulthandler
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil
import soundfile
from paths import SPEECH

from babble.codec.codec2 import encode_pcm, write_c2
from babble.codec.frames import get_mode, unpack_packets
from jobs.preprocess.worker import ChunkHeader, Decoded, Failed, Packets, decode_recording
from preprocessing.kinds import KINDS
from preprocessing.sources import Source

MODE = get_mode("1300")
SECONDS = 4
MAX_SECONDS_PER_INPUT = 10
TOLERANCE_SHARE, TOLERANCE_SECONDS = 0.01, 0.5
FORMATS = {
    "cbr.mp3": ("-b:a", "64k"),
    "vbr.mp3": ("-q:a", "5", "-write_xing", "0"),
    "a.flac": (),
    "16.wav": (),
    "float.wav": ("-c:a", "pcm_f32le"),
    "stereo.wav": ("-ac", "2", "-ar", "22050"),
    "vorbis.ogg": (),
    "a.opus": (),
    "flac.oga": ("-c:a", "flac"),
    "a.m4a": ("-c:a", "aac"),
    "a.aac": ("-c:a", "aac"),
}
FFPROBE_FORMATS = {"MP3": "mp3", "FLAC": "flac", "OGG": "ogg", "MP4": "mov", "AAC": "aac"}


def make_recordings(folder: Path) -> dict[str, bytes]:
    """Return the bytes of one short recording in every format."""
    pcm, rate_hz = soundfile.read(SPEECH / "allison-01.ogg", dtype="int16", stop=SECONDS * 8000)
    wav = folder / "speech.wav"
    soundfile.write(wav, pcm, rate_hz)
    recordings = {}
    for name, options in FORMATS.items():
        subprocess.run(["ffmpeg", "-loglevel", "error", "-i", wav, *options, folder / name], check=True)
        recordings[name] = (folder / name).read_bytes()
    write_c2(folder / "a.c2", unpack_packets(encode_pcm(pcm, MODE), MODE), MODE)
    return recordings | {"a.c2": (folder / "a.c2").read_bytes()}


def damage(name: str, recordings: dict[str, bytes], rng: random.Random) -> bytes:
    """Return the bytes of a recording with one to three kinds of damage."""
    data = bytearray(recordings[name])
    for _ in range(rng.randint(1, 3)):
        at, length = rng.randrange(len(data) + 1), int(len(data) * rng.random() ** 3)
        other = recordings[rng.choice(sorted(recordings))]
        match rng.choice(["flip", "flip in the header", "cut", "zero", "remove", "insert", "header", "repeat"]):
            case "flip":
                for _ in range(rng.choice([1, 5, 100])):
                    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
            case "flip in the header":
                data[rng.randrange(min(200, len(data)))] = rng.randrange(256)
            case "cut":
                del data[max(1, at) :]
            case "zero":
                data[at : at + length] = bytes(len(data[at : at + length]))
            case "remove":
                del data[max(1, at) : at + length]
            case "insert":
                data[at:at] = other[: length or 1]
            case "header":
                data[:64] = other[:64]
            case "repeat":
                data[at:at] = data[:at]
    return bytes(data)


def read(path: Path) -> tuple[str, float]:
    """Return the cause of a refused recording, or "", and the seconds that were read."""
    source = Source(path.stem, path, None, path.stat().st_size, is_encoded=path.suffix == ".c2")
    seconds, cause = 0.0, "nothing was read"
    for message in decode_recording(source, path.parent, MODE, 1, 0.0, 250, {}):
        match message:
            case ChunkHeader():
                seconds += message.frames / MODE.frames_per_second
            case Packets([packets]):
                seconds += len(packets) / MODE.packet_bytes / MODE.frames_per_second
            case Decoded():
                cause = ""
            case Failed(cause):
                pass
    return cause, seconds


def probe(path: Path, kind: str) -> float | None:
    """Return the seconds of all packets of the first audio track that ffprobe finds.

    None if it finds none, or an Ogg page with a wrong checksum, which old versions of FFmpeg count and new ones drop.
    """
    command = ["ffprobe", "-v", "error", "-f", FFPROBE_FORMATS[kind], "-select_streams", "a:0", "-of", "json"]
    done = subprocess.run([*command, "-show_entries", "packet=duration_time", path], capture_output=True)
    packets = json.loads(done.stdout or "{}").get("packets", [])
    known = [float(packet["duration_time"]) for packet in packets if "duration_time" in packet]
    # Packets before a damaged place have no duration.
    return sum(known) / len(known) * len(packets) if known and b"CRC mismatch" not in done.stderr else None


def memory_mb() -> float:
    """Return the memory that this process uses."""
    return psutil.Process().memory_info().rss / 2**20


def main() -> None:
    """Run all inputs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=6000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rng = random.Random(args.seed)
    folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
    recordings = make_recordings(folder)
    counts: collections.Counter[str] = collections.Counter()
    findings: list[str] = []
    memory: list[float] = []
    for number in range(args.inputs):
        name = rng.choice(sorted(recordings))
        path = folder / f"input-{number}-{name}"
        path.write_bytes(damage(name, recordings, rng))
        # A hang or a crash ends the process, and the file stays.
        faulthandler.dump_traceback_later(MAX_SECONDS_PER_INPUT, exit=True)
        cause, seconds = read(path)
        faulthandler.cancel_dump_traceback_later()
        finding = ""
        if cause.startswith("can't be decoded"):
            finding = cause
        elif not cause and (kind := KINDS.get(path.suffix)) in FFPROBE_FORMATS and (expected := probe(path, kind)):
            # The packets of FLAC around a damaged place may hold several frames, of which ffprobe counts one.
            difference = expected - seconds if kind == "FLAC" else abs(expected - seconds)
            if difference > TOLERANCE_SECONDS + TOLERANCE_SHARE * expected:
                finding = f"{seconds:.2f} s were read, ffprobe finds {expected:.2f} s"
        counts[f"{name} {'refused' if cause else 'read'}"] += 1
        if finding:
            findings.append(f"{path}: {finding}")
            print(findings[-1], flush=True)
        else:
            path.unlink()
        if number % (args.inputs // 10 or 1) == 0:
            memory.append(memory_mb())
            print(f"{number} inputs, {len(findings)} findings, {memory[-1]:.0f} MB", flush=True)
    for key in sorted(counts):
        print(f"  {key}: {counts[key]}")
    growth = memory_mb() - memory[len(memory) // 2]
    print(f"{args.inputs} inputs, {len(findings)} findings; memory grew by {growth:.0f} MB in the second half")
    if not findings:
        shutil.rmtree(folder)
    sys.exit(bool(findings or growth > 50))


if __name__ == "__main__":
    os.environ["OMP_NUM_THREADS"] = "1"
    main()
