"""Compare the modes of Codec 2: which bit rate gives the best babble for the same time of training?

    python -m jobs.bit_rates --sources kathleen --validation kathleen_09 --out bit-rates

For each mode: preprocess the recordings; train with each random seed, for as many steps as take `--minutes` on one
core; generate babble, decode it and compare it with the held-out recording. Frames of two modes can't be compared, so
the metrics are of a second of speech or of decoded audio:

- bits per second of the held-out recording, from its likelihood;
- Frechet distance from the log-mel spectra of the original recording, before the codec, to those of babble, and to
  those of the recording after the codec;
- classifier accuracy between the frames of babble and of the recording in the same mode;
- phones per second, and the share of the recording's phones that a recogniser finds again after the codec.

A row per training is appended to OUT/bit-rates.csv; trainings with a row are skipped, so a stopped comparison
continues.
"""

import json
import statistics
import subprocess
import sys
from dataclasses import dataclass
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

import numpy as np

from babble.cli import CommandError, run_command
from babble.codec.codec2 import decode_frames
from babble.codec.frames import MODES, SAMPLE_RATE_HZ, Mode, get_mode
from babble.data.shards import read_manifest, read_recordings
from babble.evaluation.classifier import measure_accuracy
from babble.evaluation.distance import add_differences, frechet_distance_of_features
from babble.evaluation.phones import PhoneCounter
from babble.files import read_json, read_json_lines
from babble.generation.free_run import generate_frames, one_thread
from babble.generation.prompts import spread_prompts
from babble.model.checkpoint import build_model, load_checkpoint
from babble.run_folder import RunFolder
from jobs.experiments import append_row, read_rows
from preprocessing.audio import open_recording
from preprocessing.sources import Source, find_sources, open_source
from preprocessing.split import SplitConfig, match_names

# Log-mel spectra: 32 ms every 10 ms, and differences over 40 and 160 ms.
WINDOW, HOP, MEL_BANDS, MEL_STEPS = 256, 80, 40, (4, 16)
NUM_STREAMS, STREAM_SECONDS = 8, 75
CLIP_SECONDS = 4
PHONE_SECONDS = 300
# Steps of the training that measures the speed.
TRIAL_STEPS = 60


@dataclass(frozen=True)
class BitRatesConfig:
    """Compare the modes of Codec 2 at the same time of training.

    Attributes:
        sources: Files, folders and zips of recordings, not encoded yet.
        validation: Name of the recording that is held out, as for --split.validation of `babble preprocess`.
        out: Folder for shards, runs and bit-rates.csv.
        recipe: Training config; its number of steps is replaced.
        minutes: Time of each training on one core.
        modes: Codec 2 modes to compare.
        seeds: Random seeds of the trainings.
    """

    sources: tuple[Path, ...] = ()
    validation: str = ""
    out: Path = Path("bit-rates")
    recipe: str = "demo"
    minutes: float = 4.0
    modes: tuple[str, ...] = ("3200", "2400", "1600", "1300", "1200", "700C")
    seeds: tuple[int, ...] = (0, 1, 2)

    def __post_init__(self) -> None:
        """Validate that recordings are named."""
        if not (self.sources and self.validation):
            raise ValueError("name the recordings with --sources, and one of them with --validation.")
        for mode in self.modes:
            get_mode(mode)


def log_mel(pcm: np.ndarray) -> np.ndarray:
    """Return log-mel spectra (T, bands) of int16 PCM (N,) at 8 kHz, in dB, with a floor 70 dB below the highest."""
    starts = np.arange(0, len(pcm) - WINDOW, HOP)
    frames = pcm[starts[:, None] + np.arange(WINDOW)] * np.hanning(WINDOW)
    power = np.abs(np.fft.rfft(frames)) ** 2
    edges = 700 * (10 ** (np.linspace(0, _mel(SAMPLE_RATE_HZ / 2), MEL_BANDS + 2) / 2595) - 1)
    bins = np.fft.rfftfreq(WINDOW, 1 / SAMPLE_RATE_HZ)
    rising = (bins[:, None] - edges[:-2]) / np.diff(edges)[:-1]
    falling = (edges[2:] - bins[:, None]) / np.diff(edges)[1:]
    bands = 10 * np.log10(power @ np.clip(np.minimum(rising, falling), 0, None) + 1e-9)
    return np.maximum(bands, bands.max() - 70)


def _mel(hz: float) -> float:
    return float(2595 * np.log10(1 + hz / 700))


def _mel_distance(ours: list[np.ndarray], theirs: list[np.ndarray]) -> float:
    """Return the Frechet distance between the log-mel spectra of two sets of PCM."""
    features = [np.concatenate([add_differences(log_mel(pcm), MEL_STEPS) for pcm in pcms]) for pcms in (ours, theirs)]
    return frechet_distance_of_features(*features)


def _run(*words: object) -> None:
    """Run a command of babble without showing its output.

    Raises:
        CommandError: it failed; the message shows the end of its stderr.
    """
    command = [sys.executable, "-m", *map(str, words)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        raise CommandError(f"{' '.join(command)} failed:\n{done.stderr[-1000:]}")


def _train(config: BitRatesConfig, shards: Path, name: str, steps: int, seed: int) -> RunFolder:
    """Train for `steps` steps, or continue an earlier start, and return the run."""
    # The trial has fewer steps than the config's warm-up, and than lie between two rows of metrics.
    few = min(50, steps // 2)
    _run(
        *("babble.train", "--config", config.recipe, "--data.shards", shards, "--runs", config.out / "runs"),
        *("--optim.warmup-steps", few, "--log-every-steps", few),
        *("--name", name, "--seed", seed, "--stop.steps", steps, "--stop.epochs", 1000, "--validate-every-epochs"),
        *(1000, "--samples.every-epochs", 0, "--compute.threads", 1, "--wandb.mode", "off", "--unfreezing", "[]"),
    )
    return RunFolder(config.out / "runs" / name)


def _count_steps(config: BitRatesConfig, shards: Path, mode: Mode) -> int:
    """Return how many steps take `minutes`, from the median speed of a short training."""
    run = _train(config, shards, f"speed-{mode.name}", TRIAL_STEPS, 0)
    rows, finished = read_json_lines(run.metrics), read_json(run.finished)
    speed = statistics.median(row["train/frames_per_second"] for row in rows if "train/frames_per_second" in row)
    return round(config.minutes * 60 * speed / (finished["frames"] / TRIAL_STEPS))


def _find_held_out(config: BitRatesConfig) -> Source:
    """Return the held-out recording.

    Raises:
        ValueError: `validation` matches none, or several.
    """
    sources = {source.name: source for source in find_sources(list(config.sources)).sources}
    splits = match_names(list(sources), SplitConfig(validation=(config.validation,))) or {}
    names = [name for name, split in splits.items() if split == "validation"]
    if len(names) > 1:
        raise ValueError(f"--validation {config.validation} matches {', '.join(names)}: name one recording.")
    return sources[names[0]]


def _read_pcm(config: BitRatesConfig, source: Source) -> np.ndarray:
    """Return the PCM of a recording, as it is before the codec."""
    with open_source(source, config.out) as path, open_recording(path) as recording:
        return np.concatenate(list(recording.pcm_blocks()))


def _measure(run: RunFolder, shards: Path, original: np.ndarray, seed: int) -> dict[str, Any]:
    """Return the metrics of a finished training."""
    manifest = read_manifest(shards)
    mode = manifest.mode
    (held_out,) = read_recordings(shards, manifest, "validation")
    model = build_model(load_checkpoint(run.checkpoint("best")))
    # Before the babble: Codec 2 has one sequence of random phases per process, so that another network would change it.
    coded = decode_frames(held_out.frames, mode)
    num_frames = STREAM_SECONDS * mode.frames_per_second
    babble_BTF = generate_frames(model, spread_prompts([held_out.frames], NUM_STREAMS), num_frames, seed=seed)
    babble = [decode_frames(frames, mode) for frames in babble_BTF]
    accuracy = measure_accuracy(list(babble_BTF), [held_out.frames], mode, CLIP_SECONDS * mode.frames_per_second, seed)
    counter, length = PhoneCounter(), PHONE_SECONDS * SAMPLE_RATE_HZ
    before, after = counter.list_phones(original[:length]), counter.list_phones(coded[:length])
    start = np.concatenate(babble)[:length]
    bits = read_json(run.finished)["best"]
    return {
        "bits_per_frame": f"{bits:.3f}",
        "bits_per_second": f"{bits * mode.frames_per_second:.0f}",
        "mel_distance": f"{_mel_distance(babble, [original]):.3f}",
        "mel_distance_of_codec": f"{_mel_distance([coded], [original]):.3f}",
        "accuracy": f"{accuracy.accuracy:.3f}" if accuracy else "",
        "phones_per_second": f"{counter.count_phones(start) / (len(start) / SAMPLE_RATE_HZ):.2f}",
        "phones_per_second_original": f"{len(before) / (min(len(original), length) / SAMPLE_RATE_HZ):.2f}",
        "phones_kept": f"{SequenceMatcher(None, before, after, autojunk=False).ratio():.3f}",
    }


def compare_bit_rates(config: BitRatesConfig) -> None:
    """Append a row per mode and seed to OUT/bit-rates.csv.

    Raises:
        ValueError: --validation does not name one recording.
        CommandError: a preprocessing or a training failed.
    """
    source = _find_held_out(config)
    table = config.out / "bit-rates.csv"
    done = {(row["mode"], row["seed"]) for row in read_rows(table)}
    for mode in (MODES[name] for name in config.modes):
        shards = config.out / "shards" / mode.name
        split = ("--split.validation", config.validation)
        _run("jobs.preprocess", "--sources", *config.sources, "--out", shards, "--mode", mode.name, *split)
        steps = _count_steps(config, shards, mode)
        original = _read_pcm(config, source)
        for seed in config.seeds:
            if (mode.name, str(seed)) in done:
                continue
            run = _train(config, shards, f"{mode.name}-{seed}", steps, seed)
            # Several threads are many times slower than one where other work shares the cores.
            with one_thread():
                metrics = _measure(run, shards, original, seed)
            row = {"mode": mode.name, "seed": seed, "steps": steps, **metrics}
            append_row(table, row)
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    run_command(BitRatesConfig, compare_bit_rates, "python -m jobs.bit_rates")
