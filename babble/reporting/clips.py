"""The clips of runs: audio, frames in physical units, and the original recordings, as plain values for JSON.

1. `gather_rows` groups the clips of `samples/` by prompt, real speech first.
2. `add_recordings` puts the original recording in front of each row, if the user names the files.
3. `describe_mode` returns what the page needs to know about a Codec 2 mode.
"""

import base64
import io
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from babble.codec.codec2 import read_c2
from babble.codec.frames import SAMPLE_RATE_HZ, Mode, energy_db, lsp_hz, pitch_hz
from babble.files import read_json
from babble.run_folder import RunFolder
from preprocessing.audio import open_recording
from preprocessing.kinds import BadRecording
from preprocessing.sources import Source, find_sources, open_source


def epoch_folder(run: RunFolder, epoch: int) -> Path:
    """Return the folder of the samples generated at the end of an epoch, counted from 1."""
    return run.samples / f"epoch-{epoch:04d}"


def read_sound(path: Path) -> tuple[np.ndarray, int]:
    """Return an audio file as int16 pcm (N,), and its sample rate in Hz.

    Raises:
        ValueError: the file can't be read.
    """
    try:
        pcm, rate_hz = soundfile.read(path, dtype="int16")
    except soundfile.LibsndfileError as error:
        raise ValueError(f"{path} can't be read ({error.error_string}): move it away to report the rest.") from None
    return pcm, rate_hz


def read_excerpt(source: Source, first_second: float, seconds: float) -> np.ndarray:
    """Return an excerpt of a recording as int16 pcm (N,) at 8 kHz, shorter if the recording ends earlier.

    Raises:
        ValueError: the recording can't be read, or holds codec frames instead of audio.
    """
    if source.is_encoded:
        raise ValueError(f"--sources {source.file} holds codec frames, not audio: remove it.")
    first, end = (round(second * SAMPLE_RATE_HZ) for second in (first_second, first_second + seconds))
    blocks, read = [], 0
    try:
        with (
            tempfile.TemporaryDirectory() as scratch,
            open_source(source, Path(scratch)) as path,
            open_recording(path) as recording,
        ):
            for block in recording.pcm_blocks():
                blocks.append(block[max(0, first - read) : end - read])
                read += len(block)
                if read >= end:
                    break
    except BadRecording as error:
        raise ValueError(f"--sources {source.file}: {error}") from None
    return np.concatenate(blocks)


def describe_frames(frames: np.ndarray, mode: Mode) -> dict[str, Any]:
    """Return frames (T, F) as levels and, if the mode has them, in physical units; unvoiced pitch is None."""
    pitch, energy, lsp = pitch_hz(frames, mode), energy_db(frames, mode), lsp_hz(frames, mode)
    return {
        "mode": mode.name,
        "levels": frames.tolist(),
        "pitch_hz": None if pitch is None else [None if np.isnan(hz) else round(hz) for hz in pitch],
        "energy_db": None if energy is None else energy.round(1).tolist(),
        "lsp_hz": None if lsp is None else lsp.round().astype(int).tolist(),
    }


def describe_mode(mode: Mode) -> dict[str, Any]:
    """Return frame rate and fields of a mode."""
    fields = [{"name": field.name, "group": field.group, "levels": field.levels} for field in mode.fields]
    return {"frames_per_second": mode.frames_per_second, "fields": fields}


def make_clip(
    sound: tuple[np.ndarray, int], frames: dict[str, Any] | None, name: str, detail: str, run: str | None
) -> dict[str, Any]:
    """Return a clip, ready for JSON. Its audio is FLAC: lossless, half the size of a WAV.

    Args:
        sound: int16 pcm (N,), and its sample rate in Hz.
        frames: what `describe_frames` returned; None if the frames were not kept.
        name: the run's name, or "Real speech".
        detail: shown below the name, as "epoch 60".
        run: the run that generated it; None for real speech.
    """
    pcm, rate_hz = sound
    flac = io.BytesIO()
    soundfile.write(flac, pcm, rate_hz, format="FLAC", subtype="PCM_16")
    return {
        "name": name,
        "detail": detail,
        "run": run,
        "is_recording": False,
        "seconds": len(pcm) / rate_hz,
        "rate_hz": rate_hz,
        "audio": base64.b64encode(flac.getvalue()).decode(),
        "frames": frames,
    }


def read_clip(path: Path, name: str, detail: str, run: str | None) -> dict[str, Any]:
    """Return a clip of `samples/`: its WAV, and the frames of the .c2 with the same name, if there is one."""
    frames = path.with_suffix(".c2")
    described = describe_frames(*read_c2(frames)) if frames.is_file() else None
    return make_clip(read_sound(path), described, name, detail, run)


def gather_rows(runs: Sequence[tuple[RunFolder, dict[str, Any]]]) -> list[dict[str, Any]]:
    """Return a row per prompt: origin, length, and the clips that continue it, real speech first.

    Runs whose prompts have the same origin and length share a row and its real speech.

    Args:
        runs: folders, and what `read_run` returned for them.
    """
    rows: dict[tuple[Any, ...], dict[str, Any]] = {}
    for run, facts in runs:
        listed = run.prompts / "prompts.json"
        origins = {origin["prompt"]: origin for origin in (read_json(listed) if listed.is_file() else [])}
        for number in sorted(int(path.stem) for path in run.prompts.glob("*.c2") if path.stem.isdecimal()):
            frames, mode = read_c2(run.prompts / f"{number}.c2")
            origin = origins.get(number, {"recording": facts["name"], "first_frame": 0})
            # With little held-out speech several prompts may have the same origin, so the number counts too.
            known = number in origins or run.path
            key = (mode.name, number, origin["recording"], origin["first_frame"], len(frames), known)
            row = rows.setdefault(
                key,
                {
                    "recording": origin["recording"],
                    "second": origin["first_frame"] / mode.frames_per_second,
                    "prompt_seconds": len(frames) / mode.frames_per_second,
                    "clips": [],
                },
            )
            real = run.samples / "real" / f"{number}.wav"
            if real.is_file() and not any(clip["run"] is None for clip in row["clips"]):
                row["clips"].insert(0, read_clip(real, "Real speech", "decoded frames", None))
            for epoch in facts["shown_epochs"]:
                path = epoch_folder(run, epoch) / f"{number}.wav"
                if path.is_file():
                    row["clips"].append(read_clip(path, facts["name"], f"epoch {epoch}", facts["name"]))
    return [row for row in rows.values() if row["clips"]]


def add_recordings(rows: list[dict[str, Any]], paths: Iterable[Path]) -> None:
    """Insert the original recording in front of the real speech of each row, with the same frames.

    Args:
        rows: what `gather_rows` returned.
        paths: the recordings, as `babble preprocess` takes them.

    Raises:
        FileNotFoundError: a path does not exist.
        ValueError: a recording is missing or can't be read.
    """
    paths = list(paths)
    by_name = {source.name: source for source in find_sources(paths).sources}
    for row in rows:
        decoded = row["clips"][0]
        if decoded["run"] is not None:
            continue
        if row["recording"] not in by_name:
            raise ValueError(
                f"--sources {' '.join(map(str, paths))}: found no recording named {row['recording']}, which the shards "
                "hold. Name the same files or folders as when the shards were made."
            )
        pcm = read_excerpt(by_name[row["recording"]], row["second"], decoded["seconds"])
        clip = make_clip((pcm, SAMPLE_RATE_HZ), decoded["frames"], decoded["name"], "original recording", None)
        row["clips"].insert(0, clip | {"is_recording": True})
