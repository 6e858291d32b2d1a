"""Join the prompts of Debian's asterisk-core-sounds-en-wav into the demo's recordings, as 2017 joined chapters.

    apt-get install asterisk-core-sounds-en-wav
    python tests/speech/make.py

1. Read every clip in the package's folder, except those that are not speech and repeated takes.
2. Trim the silence at both ends; assign the clips, longest first, to the recording that is shortest so far.
3. Shuffle each recording, insert short pauses between clips, add quiet noise, write Ogg Vorbis.

The PCM is the same each time; the files differ in the serial number that Ogg chooses for a stream.
"""

import argparse
import random
from pathlib import Path

import numpy as np
import soundfile

PACKAGE_FOLDER = Path("/usr/share/asterisk/sounds/en_US_f_Allison")
RATE_HZ = 8000
NUM_RECORDINGS = 8
NOT_SPEECH = {
    "ascending-2tone",
    "beep",
    "beeperr",
    "confbridge-join",
    "confbridge-leave",
    "descending-2tone",
    "silence",
    "tt-monkeys",
}
# The same takes as auth-thankyou and seconds: they must not be in both training and test.
REPEATED = {"privacy-thankyou", "queue-seconds"}
PAUSE_SECONDS = (0.15, 0.35)
# Ends are trimmed up to the first 20 ms block above this, about -64 dB of full scale; the margin keeps fade-outs.
MIN_SPEECH_RMS = 20.0
MARGIN_BLOCKS = 3
BLOCK_PCM = RATE_HZ // 50
# No microphone gives digital silence, and Codec 2 encodes it as a frame that no real pause has.
NOISE_RMS = 8.0
# Some clips reach full scale, and Vorbis overshoots.
GAIN = 0.8
# libsndfile's setting, 0 to 1: about 18 kbit/s here, with an error 22 dB below the speech.
COMPRESSION = 0.85
SEED = 2017


def read_clips(folder: Path) -> dict[str, np.ndarray]:
    """Return the clips of speech by name, without the silence at their ends.

    Raises:
        FileNotFoundError: the package is not installed.
        ValueError: a clip that is not 8 kHz mono.
    """
    paths = sorted(folder.rglob("*.wav"))
    if not paths:
        raise FileNotFoundError(f"{folder} has no clips. Install them: apt-get install asterisk-core-sounds-en-wav")
    clips = {}
    for path in paths:
        name = path.relative_to(folder).with_suffix("")
        if name.parts[0] in NOT_SPEECH | REPEATED:
            continue
        pcm, rate_hz = soundfile.read(path, dtype="int16")
        if rate_hz != RATE_HZ or pcm.ndim != 1:
            raise ValueError(f"{path} is {pcm.ndim}-channel at {rate_hz} Hz, expected mono at {RATE_HZ} Hz.")
        clips[name.as_posix()] = trim_ends(pcm)
    return clips


def trim_ends(pcm: np.ndarray) -> np.ndarray:
    """Return a clip from a margin before its first loud block to a margin after its last."""
    blocks = pcm[: len(pcm) // BLOCK_PCM * BLOCK_PCM].reshape(-1, BLOCK_PCM).astype(float)
    (loud,) = np.nonzero(np.sqrt((blocks**2).mean(axis=1)) > MIN_SPEECH_RMS)
    return pcm[max(0, loud[0] - MARGIN_BLOCKS) * BLOCK_PCM : (loud[-1] + 1 + MARGIN_BLOCKS) * BLOCK_PCM]


def assign_clips(clips: dict[str, np.ndarray]) -> list[list[str]]:
    """Return the names of each recording's clips in order: equal lengths, topics mixed, the same every time."""
    names = sorted(clips, key=lambda name: (-len(clips[name]), name))
    recordings: list[list[str]] = [[] for _ in range(NUM_RECORDINGS)]
    for name in names:
        min(recordings, key=lambda held: sum(len(clips[other]) for other in held)).append(name)
    rng = random.Random(SEED)
    for held in recordings:
        rng.shuffle(held)
    return recordings


def join_clips(clips: list[np.ndarray], rng: np.random.Generator) -> np.ndarray:
    """Return one recording: float32 PCM in -1 to 1, clips with pauses between them and added noise."""
    parts = []
    for clip in clips:
        parts += [np.zeros(round(rng.uniform(*PAUSE_SECONDS) * RATE_HZ)), clip * GAIN]
    pcm = np.concatenate(parts)
    return ((pcm + rng.normal(0, NOISE_RMS, len(pcm))) / 32768).astype(np.float32)


def write_recording(path: Path, pcm: np.ndarray) -> None:
    """Write PCM as Ogg Vorbis."""
    with soundfile.SoundFile(
        path, "w", RATE_HZ, 1, format="OGG", subtype="VORBIS", compression_level=COMPRESSION
    ) as file:
        # One second per call: libsndfile overflows its stack on minutes of Vorbis in one call.
        for start in range(0, len(pcm), RATE_HZ):
            file.write(pcm[start : start + RATE_HZ])


def main() -> None:
    """Make the recordings, in the folder of this file or in --out."""
    parser = argparse.ArgumentParser(description="Join the clips of asterisk-core-sounds-en-wav into recordings.")
    parser.add_argument("--clips", type=Path, default=PACKAGE_FOLDER, help="the package's folder")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="where the recordings go")
    options = parser.parse_args()
    clips = read_clips(options.clips)
    rng = np.random.default_rng(SEED)
    for number, names in enumerate(assign_clips(clips), start=1):
        pcm = join_clips([clips[name] for name in names], rng)
        path = options.out / f"allison-{number:02d}.ogg"
        write_recording(path, pcm)
        print(f"{path.name}: {len(names)} clips, {len(pcm) / RATE_HZ:.1f} s, {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
