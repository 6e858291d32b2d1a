"""What the benchmark works on, all made from tests/speech: MP3s, shards of any length, and run folders."""

import itertools
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from babble.codec.frames import unpack_packets
from babble.data.shards import Manifest, Segment, write_manifest, write_shards
from babble.run_folder import RunFolder
from jobs.benchmark.config import MODE, ROOT
from jobs.benchmark.floors import encode_recordings

if TYPE_CHECKING:
    from babble.model.babbler import Babbler


def list_speech() -> list[Path]:
    """Return the recordings in tests/speech."""
    return sorted((ROOT / "tests" / "speech").glob("*.ogg"))


def join_speech(folder: Path, hours: float) -> list[Path]:
    """Write MP3s with this many hours of speech and return their paths.

    Each holds all of tests/speech in another order, as preprocessing rejects the same recording twice.
    """
    import soundfile

    clips = [soundfile.read(path, dtype="int16") for path in list_speech()]
    rate_hz = clips[0][1]
    rest = round(hours * 3600 * rate_hz)
    paths: list[Path] = []
    for order in itertools.permutations(range(len(clips))):
        pcm = np.concatenate([clips[n][0] for n in order])[:rest]
        paths.append(folder / f"speech-{len(paths):03d}.mp3")
        soundfile.write(paths[-1], pcm, rate_hz)
        rest -= len(pcm)
        if rest < rate_hz:
            break
    return paths


def make_corpus(folder: Path, hours: float, held_out_hours: float = 40 / 3600) -> Path:
    """Write shards with at least `hours` of training speech, tests/speech repeated, and return their folder."""
    wanted = _count_frames(hours)
    speech: list[np.ndarray] = []
    for packets in encode_recordings(list_speech()):
        speech.append(unpack_packets(packets, MODE))
        if sum(map(len, speech)) >= wanted:
            break
    train: list[Segment] = []
    while sum(len(segment.frames) for segment in train) < wanted:
        train.append(Segment(f"speech-{len(train):04d}", 0, speech[len(train) % len(speech)]))
    held_out = np.resize(np.concatenate(speech), (_count_frames(held_out_hours), MODE.num_fields))
    corpus = folder / "corpus"
    corpus.mkdir()
    shards, recordings = [], []
    for split, segments in (("train", train), ("validation", [Segment("validation", 0, held_out)])):
        shards += write_shards(corpus, split, segments, MODE, entries_per_shard=64)
        recordings += [
            {"name": segment.recording, "split": split, "first_frame": 0, "frames": len(segment.frames)}
            for segment in segments
        ]
    write_manifest(corpus, Manifest(MODE, {}, recordings, shards, []))
    return corpus


def _count_frames(hours: float) -> int:
    return round(hours * 3600 * MODE.frames_per_second)


def make_run(folder: Path, model: "Babbler") -> RunFolder:
    """Return a new run folder with an untrained network as its best checkpoint."""
    import torch

    run = RunFolder(folder)
    run.claim({})
    checkpoint = {
        "state_dict": {f"model.{key}": value for key, value in model.state_dict().items()},
        "hyper_parameters": {"model": asdict(model.config), "mode": MODE.name},
        "epoch": 0,
        "global_step": 0,
    }
    torch.save(checkpoint, run.checkpoint("best"))
    return run
