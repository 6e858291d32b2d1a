"""The measures on held-out speech and on babble, beside their baselines.

    python -m babble.evaluate runs/NAME --shards shards/tale --split test --json out.json --figure out.png

1. The network hears each held-out recording whole, state carried from its first frame on, and predicts every frame
   but that first one: mean absolute error in levels, and bits per frame where the head has a likelihood; in total,
   by group and by field, and without the pitch of unvoiced frames.
2. The baselines learn from the training split of the same shards and predict the same frames (baselines.py).
3. The network generates from several held-out prompts. Its speech statistics are compared with the same statistics of
   held-out speech, other real speech, shuffled frames and a Markov chain; and a classifier tries to tell each of them
   from the held-out speech (discriminator.py).
   This takes most of the time: with what is the default, a quarter of an hour or more of one core; 1. and 2. take 40
   seconds for an hour of speech.
4. On request the 2017 training error: the last frame of windows of the training split. It says what the network
   remembers and is no result.
"""

import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from babble.cli import run_command
from babble.codec.frames import Mode
from babble.data.plans import window_starts
from babble.data.shards import read_manifest, read_recordings
from babble.evaluation.baselines import (
    BLOCK_SECONDS,
    bootstrap_interval,
    find_unvoiced_pitch,
    measure_baselines,
    name_bits,
    name_errors,
)
from babble.evaluation.classifier import measure_accuracy
from babble.evaluation.speech_statistics import (
    CLIP_SECONDS,
    REAL,
    babble_markov,
    format_statistics,
    measure_speech,
    shuffle_frames,
)
from babble.files import write_json
from babble.generate import PROMPT_FRAMES, GenerateConfig, resolve_sampling
from babble.generation.free_run import generate_frames
from babble.model.babbler import Babbler
from babble.model.checkpoint import build_model, load_checkpoint
from babble.model.likelihood import measure_losses
from babble.model.sampling import Sampling
from babble.reporting.plots.evaluation import plot_evaluation
from babble.reporting.plots.figures import save_figure
from babble.run_folder import RunFolder

WINDOWS_AT_ONCE = 64
# Streams of babble side by side, each from a prompt of its own.
NUM_STREAMS = 8
CLASSIFIED_SECONDS = (1, 4, 16, 60)
# So much of each kind of speech goes through the phone recogniser, by far the slowest of the measures.
PHONE_SECONDS = 300.0


@dataclass(frozen=True)
class EvaluateConfig:
    """Measure a trained network on held-out speech, and its babble beside it.

    Attributes:
        run: the run's folder, runs/NAME.
        checkpoint: "best", "last", "stage-N", or the path of a checkpoint file.
        shards: folder of shards; the run's own by default.
        split: "validation" or "test".
        training_windows: also the 2017 training error, over so many windows spread evenly over the training split;
            0 leaves it out.
        window_frames: length of these windows.
        babble_seconds: length of each of 8 streams of babble, which are measured as speech; 0 leaves that out.
        temperature: as babble.generate has it, for that babble; so are the next three.
        top_p: see babble.generate.
        min_p: see babble.generate.
        seed: of the babble, and of whatever is drawn in measuring it.
        json: also write the figures to this file.
        figure: also draw them, to this PNG.
    """

    run: Path | None = None
    checkpoint: str = "best"
    shards: Path | None = None
    split: str = "validation"
    training_windows: int = 0
    window_frames: int = 200
    babble_seconds: float = 600.0
    temperature: str | float | None = None
    top_p: str | float | None = None
    min_p: str | float | None = None
    seed: int = 0
    json: Path | None = None
    figure: Path | None = None

    def __post_init__(self) -> None:
        """Refuse what can't be measured."""
        if self.run is None:
            raise ValueError("name the run to evaluate: python -m babble.evaluate runs/NAME")
        if self.split not in ("validation", "test"):
            raise ValueError(f"--split {self.split}: validation or test; what was trained on is no result.")
        if self.training_windows < 0 or self.window_frames < 1:
            raise ValueError("--training_windows has to be 0 or more and --window_frames 1 or more.")
        if self.babble_seconds < 0:
            raise ValueError(f"--babble_seconds {self.babble_seconds}: 0 or more is needed.")
        for key in ("temperature", "top_p", "min_p"):
            if not self.babble_seconds and getattr(self, key) is not None:
                raise ValueError(f"--{key} has no effect with --babble_seconds 0.")
        if self.figure and self.figure.suffix != ".png":
            raise ValueError(f"--figure {self.figure}: a name that ends in .png is needed.")


def measure_held_out(model: Babbler, held_out: list[np.ndarray]) -> dict[str, Any]:
    """Return what predicting recordings (T, F) costs the network: the figures of `name_errors` and `name_bits`.

    "intervals" has those of the monitor figures, [low, high] or None where the speech is too short to tell.
    """
    mode, has_bits = model.mode, model.head.has_likelihood
    errors, bits, saved = [], [], []
    for frames in held_out:
        error_BTF, bits_BTF = measure_losses(model, torch.from_numpy(frames.astype(np.int64))[None])
        errors.append(error_BTF[0].numpy().astype(np.float64))
        bits.append(bits_BTF[0].numpy().astype(np.float64))
        is_unvoiced_pitch = find_unvoiced_pitch(frames[1:], mode)
        if is_unvoiced_pitch is not None:
            saved.append(np.where(is_unvoiced_pitch, bits[-1], 0).sum(axis=1))
    figures = name_errors(np.concatenate(errors).mean(axis=0), mode)
    costs = {"error_levels": [error.mean(axis=1) for error in errors]}
    if has_bits:
        unvoiced_bits = float(np.concatenate(saved).mean()) if saved else None
        figures |= name_bits(np.concatenate(bits).mean(axis=0), unvoiced_bits, mode)
        totals = [values.sum(axis=1) for values in bits]
        costs["bits_per_frame"] = totals
        if saved:
            costs["bits_per_frame_without_unvoiced_pitch"] = [a - b for a, b in zip(totals, saved, strict=True)]
    block_frames = BLOCK_SECONDS * mode.frames_per_second
    figures["intervals"] = {
        name: bootstrap_interval(values, block_frames) for name, values in costs.items() if name in figures
    }
    return figures


@torch.no_grad()
def training_error_2017(model: Babbler, recordings: list[np.ndarray], windows: int, window_frames: int) -> float:
    """Return the mean absolute error in levels of the last frame of windows, heard from a fresh start, as 2017 did.

    Args:
        model: a network of a mode without label fields.
        recordings: recordings of the training split (T, F).
        windows: how many, spread evenly over all of them.
        window_frames: how many frames are heard before the one that is predicted.
    """
    frames = np.concatenate(recordings).astype(np.int64)
    starts = window_starts([len(r) for r in recordings], window_frames, hop_frames=1)
    chosen = starts[np.linspace(0, len(starts) - 1, min(windows, len(starts))).astype(int)]
    total = 0.0
    for first in range(0, len(chosen), WINDOWS_AT_ONCE):
        places = chosen[first : first + WINDOWS_AT_ONCE, None] + np.arange(window_frames + 1)
        windows_BTF = torch.from_numpy(frames[places])
        hidden_BTH, _ = model(windows_BTF[:, :-1])
        predicted_BTF = model.head.predict(hidden_BTH[:, -1:])
        total += (predicted_BTF - windows_BTF[:, -1:]).abs().mean(dim=(1, 2)).sum().item()
    return total / len(chosen)


def pick_segments(
    recordings: list[np.ndarray], num_frames: int, wanted_frames: int, clip_frames: int, seed: int
) -> list[np.ndarray]:
    """Return segments drawn from all recordings, in their order, until they have as many frames as wanted.

    Args:
        recordings: (T, F) each; all of them is returned where they have no more.
        num_frames: length of a segment; what is left of a recording is shorter, unless it is too short.
        wanted_frames: how many frames are wanted of all segments together.
        clip_frames: shorter is too short, unless most recordings are.
        seed: of the draw.
    """
    pieces = [frames[t : t + num_frames] for frames in recordings for t in range(0, len(frames), num_frames)]
    shortest = min(clip_frames, np.median([len(piece) for piece in pieces]))
    pieces = [piece for piece in pieces if len(piece) >= shortest]
    order = np.random.default_rng(seed).permutation(len(pieces))
    before = np.cumsum([0, *(len(pieces[n]) for n in order)])[:-1]
    return [pieces[n] for n in sorted(order[before < wanted_frames])]


def make_babble(
    model: Babbler, held_out: list[np.ndarray], num_frames: int, sampling: Sampling, seed: int
) -> list[np.ndarray]:
    """Return `NUM_STREAMS` streams (num_frames, F) of babble, from prompts spread evenly over held-out recordings."""
    joined = np.concatenate(held_out)
    prompt_frames = min(PROMPT_FRAMES, len(joined))
    firsts = np.linspace(0, len(joined) - prompt_frames, NUM_STREAMS).astype(int)
    prompts_BTF = np.stack([joined[first : first + prompt_frames] for first in firsts])
    return list(generate_frames(model, prompts_BTF, num_frames, sampling, seed))


def compare_speech(
    babble: list[np.ndarray], held_out: list[np.ndarray], train: list[np.ndarray], mode: Mode, seed: int
) -> dict[str, Any]:
    """Return the statistics's figures of babble beside real and dumb speech, and how well each is told from held-out.

    Args:
        babble: streams (T, F) of one length, which the segments of the other kinds have too.
        held_out: recordings that were not learned from.
        train: recordings that were.
        mode: the mode of all of them.
        seed: of everything drawn.

    Returns:
        "statistics", what `measure_speech` gives; "classifier", by kind of speech and clip seconds (text) the values
        of an `Accuracy`, None where there are too few clips. "other real speech" is what babble has to equal.
    """
    rng = np.random.default_rng(seed)
    num_frames, wanted_frames = len(babble[0]), sum(map(len, babble))
    clip_frames = min(num_frames, CLIP_SECONDS * mode.frames_per_second)
    real, other = (
        pick_segments(recordings, num_frames, wanted_frames, clip_frames, seed) for recordings in (held_out, train)
    )
    speech = {
        "babble": babble,
        REAL: real,
        "other real speech": other,
        "shuffled frames": [shuffle_frames(frames, rng) for frames in real],
        "Markov chain": [babble_markov(train, num_frames, mode, rng) for _ in babble],
    }
    pairs = [(name, seconds) for name in speech if name != REAL for seconds in CLASSIFIED_SECONDS]
    accuracies: dict[str, dict[str, Any]] = {name: {} for name, _ in pairs}
    for name, seconds in tqdm(pairs, "classifier", disable=not sys.stderr.isatty()):
        found = measure_accuracy(speech[name], real, mode, seconds * mode.frames_per_second, seed)
        accuracies[name][str(seconds)] = found and asdict(found)
    return {"statistics": measure_speech(speech, train, mode, PHONE_SECONDS, seed), "classifier": accuracies}


def evaluate(config: EvaluateConfig) -> dict[str, Any]:
    """Return every figure of a run on a held-out split.

    Raises:
        FileNotFoundError, ValueError: a run, checkpoint or shards that can't be; the message says which.
    """
    assert config.run is not None
    run = RunFolder(config.run)
    path = run.find_checkpoint(config.checkpoint)
    checkpoint = load_checkpoint(path)
    model = build_model(checkpoint)
    settings = {key: getattr(config, key) for key in ("temperature", "top_p", "min_p")}
    sampling = resolve_sampling(GenerateConfig(run=config.run, **settings), model)
    folder = Path(config.shards or run.read_config()["data"]["shards"])
    manifest = read_manifest(folder)
    if manifest.mode != model.mode:
        raise ValueError(f"{folder} is of mode {manifest.mode.name}, the run of mode {model.mode.name}.")
    recordings = read_recordings(folder, manifest, config.split)
    held_out = [recording.frames for recording in recordings if len(recording.frames) > 1]
    train = [recording.frames for recording in read_recordings(folder, manifest, "train")]
    if not held_out:
        raise ValueError(f"{folder} has no {config.split} recordings.")
    figures: dict[str, Any] = {
        "run": str(run.path),
        "checkpoint": str(path),
        "epoch": checkpoint["epoch"],
        "step": checkpoint["global_step"],
        "shards": str(folder),
        "split": config.split,
        "recordings": [recording.recording for recording in recordings],
        "hours": sum(len(frames) for frames in held_out) / model.mode.frames_per_second / 3600,
        "mode": model.mode.name,
        "held_out": measure_held_out(model, held_out),
        "baselines": measure_baselines(train, held_out, model.mode),
    }
    if config.training_windows:
        if model.mode.has_labels:
            raise ValueError("--training_windows: a mode with label fields has no error in levels.")
        figures["training_error_2017"] = training_error_2017(
            model, train, config.training_windows, config.window_frames
        )
    if config.babble_seconds:
        num_frames = max(2, round(config.babble_seconds * model.mode.frames_per_second))
        babble = make_babble(model, held_out, num_frames, sampling, config.seed)
        figures["babble"] = {"streams": NUM_STREAMS, "seconds": config.babble_seconds, **settings}
        figures["speech"] = compare_speech(babble, held_out, train, model.mode, config.seed)
    if config.figure:
        save_figure(plot_evaluation(figures), config.figure)
    if config.json:
        write_json(config.json, figures)
    return figures


def format_table(figures: dict[str, Any]) -> str:
    """Return the figures as lines for a screen."""
    lines = [
        f"{figures['checkpoint']} (epoch {figures['epoch']}, step {figures['step']}) on the {figures['split']} split "
        f"of {figures['shards']}: {figures['hours']:.2f} hours, {len(figures['recordings'])} recordings"
    ]
    parts = {
        "error_levels": ("mean absolute error, levels", "error"),
        "bits_per_frame": ("bits per frame", "bits"),
        "bits_per_frame_without_unvoiced_pitch": ("bits per frame without the pitch of unvoiced frames", None),
    }
    for name, (unit, part) in parts.items():
        if name not in figures["held_out"]:
            continue
        rows = {label: values for label, values in figures["baselines"].items() if name in values}
        rows["this network"] = figures["held_out"]
        lines.append(f"\n{unit}")
        lines += [f"  {values[name]:8.3f}  {label}{_show_interval(values, name)}" for label, values in rows.items()]
        if part:
            groups = [label for label in figures["held_out"] if label.startswith(f"{part}/")]
            lines += [f"    {figures['held_out'][label]:8.3f}  {label.removeprefix(f'{part}/')}" for label in groups]
            lines += _show_fields(rows, f"{part}_by_field")
    if "speech" in figures:
        told = ", ".join(f"{key} {value}" for key, value in figures["babble"].items() if value is not None)
        lines += [
            f"\nbabble: {told}",
            format_statistics(figures["speech"]["statistics"]),
            "",
            *_show_accuracies(figures["speech"]["classifier"]),
        ]
    if "training_error_2017" in figures:
        lines.append(
            f"\n{figures['training_error_2017']:10.3f}  the 2017 training error (last frame of windows it has "
            "trained on): what it remembers, no result"
        )
    return "\n".join(lines)


def _show_interval(values: dict[str, Any], name: str) -> str:
    interval = values.get("intervals", {}).get(name)
    return f"  ({interval[0]:.3f} to {interval[1]:.3f})" if interval else ""


def _show_fields(rows: dict[str, dict[str, Any]], key: str) -> list[str]:
    """Return a line a field, with a column for each of the rows."""
    columns = [values[key] for values in rows.values()]
    return [f"    by field: {'; '.join(rows)}"] + [
        f"    {field:>8s}" + "".join(f"{column[field]:9.3f}" for column in columns) for field in columns[0]
    ]


def _show_accuracies(accuracies: dict[str, dict[str, Any]]) -> list[str]:
    lines = ["told from held-out speech by a classifier, share of clips (0.5: not at all)"]
    lines.append(" " * 20 + "".join(f"{f'{seconds} s':>22s}" for seconds in CLASSIFIED_SECONDS))
    for name, found in accuracies.items():
        cells = [
            f"{a['accuracy']:.3f} ({a['low']:.3f}-{a['high']:.3f})" if a else "too little speech"
            for a in found.values()
        ]
        lines.append(f"  {name:18s}" + "".join(f"{cell:>22s}" for cell in cells))
    return lines


def main() -> None:
    """Run `python -m babble.evaluate`."""
    run_command(
        EvaluateConfig, lambda config: print(format_table(evaluate(config))), "python -m babble.evaluate", "run"
    )


if __name__ == "__main__":
    main()
