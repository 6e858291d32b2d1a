"""Prompts: the frames that generation continues.

    prompt = find_prompt("12:30", run, mode)
    prompt.frames, prompt.origin

A prompt is silence, one that the training saved with its samples, a segment of the held-out recordings, or a user's own
audio.
"""

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from babble.codec.codec2 import read_c2, read_c2cb, silence_frame
from babble.codec.frames import Mode, unpack_packets
from babble.data.shards import Manifest, read_manifest, read_recordings
from babble.run_folder import PRETRAINED, RunFolder
from preprocessing.audio import open_recording
from preprocessing.encode import encode_recording
from preprocessing.kinds import BadRecording, kind_of, read_head
from preprocessing.names import split_suffix

# Length of a prompt from held-out recordings: 8 s in mode 1300, a window of 2017.
PROMPT_FRAMES = 200
SILENCE_SECONDS = 1
# The pcm of a user's audio is encoded in chunks of this many frames.
CHUNK_FRAMES = 7500


@dataclass(frozen=True)
class Prompt:
    """Frames to continue (T, F), and their origin in words."""

    frames: np.ndarray
    origin: str


def find_prompt(
    name: str | None,
    run: RunFolder,
    mode: Mode,
    num_frames: int | None = None,
    shards: Path | None = None,
    seed: int = 0,
) -> Prompt:
    """Return the prompt that a user names.

    Args:
        name: "silence"; "samples:2", the run's second prompt; a time such as 12:30 or "frame:18750", counted through
            the held-out recordings in manifest order; "random"; or the path of an audio file. None is "samples:1" if
            the run has it, else silence.
        run: the run whose prompts and shards are meant.
        mode: the mode of its network.
        num_frames: length; by default a second of silence, a whole samples prompt or audio file, else `PROMPT_FRAMES`,
            or all held-out frames if there are fewer.
        shards: the folder of shards with the held-out recordings; the run's own by default.
        seed: random seed of "random".

    Raises:
        FileNotFoundError: no such samples prompt, shards or audio file.
        ValueError: a position past the end of the held-out recordings, a prompt shorter than `num_frames`, shards or
            audio of another mode, shards without effect, a negative seed of "random".
    """
    name = name or ("samples:1" if (run.prompts / "1.c2").is_file() else "silence")
    is_held_out = name == "random" or _parse_position(name, mode) is not None
    if shards and not is_held_out:
        raise ValueError(
            f"--shards {shards} has no effect with --prompt {name}: remove it, or give a time, frame:N or random."
        )
    if name == "silence":
        silent_frames = num_frames or SILENCE_SECONDS * mode.frames_per_second
        prompt = Prompt(np.repeat(silence_frame(mode)[None], silent_frames, axis=0), name)
    elif match := re.fullmatch(r"samples:(\d+)", name):
        prompt = _read_samples_prompt(name, match[1], run)
    elif is_held_out:
        prompt = _cut_held_out(name, run, mode, num_frames, shards, seed)
    else:
        if not Path(name).is_file():
            raise FileNotFoundError(
                f"--prompt {name}: not an existing file, a time (12:30), frame:N, random, silence or samples:N."
            )
        try:
            prompt = Prompt(read_frames(Path(name), mode), name)
        except ValueError as error:
            raise ValueError(f"--prompt {error}") from None
    wanted = num_frames or max(1, len(prompt.frames))
    if len(prompt.frames) < wanted:
        raise ValueError(f"--prompt {name} has {len(prompt.frames)} frames, but {wanted} are needed.")
    return Prompt(prompt.frames[:wanted], prompt.origin)


def spread_prompts(recordings: list[np.ndarray], num_prompts: int) -> np.ndarray:
    """Return prompts (B, T, F) spread evenly over recordings (T, F); T is `PROMPT_FRAMES`, or all that there are."""
    joined = np.concatenate(recordings)
    num_frames = min(PROMPT_FRAMES, len(joined))
    firsts = np.linspace(0, len(joined) - num_frames, num_prompts).astype(int)
    return np.stack([joined[first : first + num_frames] for first in firsts])


def open_shards(shards: Path | None, run: RunFolder, mode: Mode) -> tuple[Path, Manifest]:
    """Return the folder of shards that a user names, or that the run was trained on, and its manifest.

    Raises:
        FileNotFoundError: see `read_manifest`.
        ValueError: shards of another mode, or none named for weights that come without a run's config.yaml.
    """
    if shards is None and not run.config.is_file():
        owner = "the bundled voice" if run.path == PRETRAINED else str(run.path)
        raise ValueError(f"{owner} comes without shards: name a folder of shards with --shards.")
    folder = Path(shards or run.read_config()["data"]["shards"])
    manifest = read_manifest(folder)
    if manifest.mode != mode:
        raise ValueError(
            f"{folder} has mode {manifest.mode.name}, but the network was trained on mode {mode.name}. "
            "Name shards of that mode with --shards."
        )
    return folder, manifest


def _parse_position(name: str, mode: Mode) -> int | None:
    """Return the frame number of a position such as "frame:18750", "12:30" or "1:02:03.5"; None for anything else."""
    if match := re.fullmatch(r"frame:(\d+)", name):
        return int(match[1])
    if not re.fullmatch(r"(\d+:)?\d+:\d+(\.\d+)?", name):
        return None
    seconds = sum(float(part) * 60**power for power, part in enumerate(reversed(name.split(":"))))
    return round(seconds * mode.frames_per_second)


def _read_samples_prompt(name: str, number: str, run: RunFolder) -> Prompt:
    path = run.prompts / f"{number}.c2"
    if not path.is_file():
        existing = ", ".join(sorted(f"samples:{path.stem}" for path in run.prompts.glob("*.c2")))
        raise FileNotFoundError(f"{run.path} has no prompt {name}; it has {existing or 'none'}.")
    return Prompt(read_c2(path)[0], f"{name} of {run.path}")


def _cut_held_out(
    name: str, run: RunFolder, mode: Mode, num_frames: int | None, shards: Path | None, seed: int
) -> Prompt:
    folder, manifest = open_shards(shards, run, mode)
    recordings = [r.frames for split in ("validation", "test") for r in read_recordings(folder, manifest, split)]
    if not recordings:
        raise ValueError(f"--prompt {name}: {folder} has no validation and no test split. Choose another prompt.")
    held_out = np.concatenate(recordings)
    num_frames = num_frames or min(PROMPT_FRAMES, len(held_out))
    last = len(held_out) - num_frames
    first = _parse_position(name, mode)
    if first is None:
        if seed < 0:
            raise ValueError(f"--seed {seed}: must be at least 0 with --prompt {name}.")
        first = int(np.random.default_rng(seed).integers(max(1, last + 1)))
    if not first <= last:
        raise ValueError(
            f"--prompt {name}: frames {first} to {first + num_frames - 1} are past the end of the held-out recordings "
            f"of {folder}, which have {len(held_out)} frames ({len(held_out) / mode.frames_per_second / 60:.1f} "
            "minutes)."
        )
    return Prompt(held_out[first : first + num_frames], f"held-out frame {first} of {folder}")


def read_frames(path: Path, mode: Mode) -> np.ndarray:
    """Return a recording as frames (T, F), encoded as the preprocessing encodes it.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no audio, or .c2 or .c2cb of another mode.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not an existing file.")
    with path.open("rb") as file:
        kind = kind_of(read_head(file), split_suffix(path.name)[1])
    if kind == "C2CB":
        return read_c2cb(path, mode)
    if kind == "Codec 2":
        frames, found = read_c2(path)
        if found != mode:
            raise ValueError(f"{path} has mode {found.name}, but mode {mode.name} is needed.")
        return frames
    try:
        with open_recording(path) as recording:
            packets = encode_recording(recording.pcm_blocks(), mode, CHUNK_FRAMES)
    except BadRecording as bad:
        raise ValueError(f"{path}: {bad}") from None
    return unpack_packets(packets, mode)
