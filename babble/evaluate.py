"""The measures on held-out speech, beside their baselines.

    python -m babble.evaluate runs/NAME --shards shards/tale --split test --json out.json

1. The network hears each held-out recording whole, state carried from its first frame on, and predicts every frame
   but that first one: mean absolute error in levels, and bits per frame where the head has a likelihood.
2. The baselines learn from the training split of the same shards and predict the same frames: the last frame copied,
   the median given the same field's last level, each field's own frequencies, and those given its last level.
3. On request the 2017 training error: the last frame of windows of the training split. It says what the network
   remembers and is no result.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from babble.commands import run_command
from babble.data import window_starts
from babble.frames import Mode
from babble.generate import load_checkpoint
from babble.model import Babbler, model_from_checkpoint
from babble.module import held_out_figures, sum_costs
from babble.run import RunFolder
from babble.shards import read_manifest, read_recordings, write_json

# Added to every count of the frequency baselines, so that a level never heard in training costs bits and not infinity.
PSEUDO_COUNT = 0.1
WINDOWS_AT_ONCE = 64


@dataclass(frozen=True)
class EvaluateConfig:
    """Measure a trained network on held-out speech.

    Attributes:
        run: the run's folder, runs/NAME.
        checkpoint: "best", "last", "stage-N", or the path of a checkpoint file.
        shards: folder of shards; the run's own by default.
        split: "validation" or "test".
        training_windows: also the 2017 training error, over so many windows spread evenly over the training split;
            0 leaves it out.
        window_frames: length of these windows.
        json: also write the figures to this file.
    """

    run: Path | None = None
    checkpoint: str = "best"
    shards: Path | None = None
    split: str = "validation"
    training_windows: int = 0
    window_frames: int = 200
    json: Path | None = None

    def __post_init__(self) -> None:
        """Refuse what can't be measured."""
        if self.run is None:
            raise ValueError("name the run to evaluate: python -m babble.evaluate runs/NAME")
        if self.split not in ("validation", "test"):
            raise ValueError(f"--split {self.split}: validation or test; what was trained on is no result.")
        if self.training_windows < 0 or self.window_frames < 1:
            raise ValueError("--training_windows has to be 0 or more and --window_frames 1 or more.")


def _transitions(recordings: list[np.ndarray], column: int, levels: int) -> np.ndarray:
    """Return how often each level of a field follows each, float64 (last, next)."""
    counts = np.zeros(levels * levels)
    for frames in recordings:
        level = frames[:, column].astype(np.int64)
        counts += np.bincount(level[:-1] * levels + level[1:], minlength=levels * levels)
    return counts.reshape(levels, levels)


def measure_baselines(train: list[np.ndarray], held_out: list[np.ndarray], mode: Mode) -> dict[str, dict[str, float]]:
    """Return what predictors without a network reach on held-out recordings, by name.

    Args:
        train: recordings (T, F) that frequencies and medians are learned from.
        held_out: recordings (T, F) that are predicted, every frame but each one's first.
        mode: their mode; in modes with label fields no error is given.

    Returns:
        for each baseline "error_levels" or "bits_per_frame".
    """
    errors = {"the last frame copied": 0.0, "the median given the last level": 0.0}
    bits = {"each field's frequencies": 0.0, "frequencies given the last level": 0.0}
    for column, levels in enumerate(mode.levels.tolist()):
        learned = _transitions(train, column, levels) + PSEUDO_COUNT
        heard = _transitions(held_out, column, levels)
        frames = heard.sum()
        given_last = learned / learned.sum(axis=1, keepdims=True)
        alone = learned.sum(axis=0) / learned.sum()
        bits["each field's frequencies"] -= (heard.sum(axis=0) * np.log2(alone)).sum() / frames
        bits["frequencies given the last level"] -= (heard * np.log2(given_last)).sum() / frames
        last, after = np.indices(heard.shape)
        median = (given_last.cumsum(axis=1) < 0.5).sum(axis=1)
        errors["the last frame copied"] += (heard * abs(after - last)).sum() / frames / mode.num_fields
        errors["the median given the last level"] += (
            (heard * abs(after - median[:, None])).sum() / frames / mode.num_fields
        )
    figures = {name: {"bits_per_frame": float(value)} for name, value in bits.items()}
    if not mode.has_labels:
        figures |= {name: {"error_levels": float(value)} for name, value in errors.items()}
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
        guess_BTF = model.typed_head.guess(hidden_BTH[:, -1:])
        total += (guess_BTF - windows_BTF[:, -1:]).abs().mean(dim=(1, 2)).sum().item()
    return total / len(chosen)


def evaluate(config: EvaluateConfig) -> dict[str, Any]:
    """Return every figure of a run on a held-out split.

    Raises:
        FileNotFoundError, ValueError: a run, checkpoint or shards that can't be; the message says which.
    """
    assert config.run is not None
    run = RunFolder(config.run)
    path = run.find_checkpoint(config.checkpoint)
    checkpoint = load_checkpoint(path)
    model = model_from_checkpoint(checkpoint)
    folder = Path(config.shards or run.read_config()["data"]["shards"])
    manifest = read_manifest(folder)
    if manifest.mode != model.mode:
        raise ValueError(f"{folder} is of mode {manifest.mode.name}, the run of mode {model.mode.name}.")
    recordings = read_recordings(folder, manifest, config.split)
    held_out = [recording.frames for recording in recordings if len(recording.frames) > 1]
    train = [recording.frames for recording in read_recordings(folder, manifest, "train")]
    if not held_out:
        raise ValueError(f"{folder} has no {config.split} recordings.")
    sums = torch.zeros(3, model.mode.num_fields, dtype=torch.float64)
    for frames in held_out:
        sums += sum_costs(model, torch.from_numpy(frames.astype(np.int64))[None])
    figures: dict[str, Any] = {
        "run": str(run.path),
        "checkpoint": str(path),
        "epoch": checkpoint["epoch"],
        "step": checkpoint["global_step"],
        "shards": str(folder),
        "split": config.split,
        "recordings": [recording.recording for recording in recordings],
        "hours": sum(len(frames) for frames in held_out) / model.mode.frames_per_second / 3600,
        "held_out": held_out_figures(sums, model, model.mode),
        "baselines": measure_baselines(train, held_out, model.mode),
    }
    if config.training_windows:
        if model.mode.has_labels:
            raise ValueError("--training_windows: a mode with label fields has no error in levels.")
        figures["training_error_2017"] = training_error_2017(
            model, train, config.training_windows, config.window_frames
        )
    if config.json:
        write_json(config.json, figures)
    return figures


def format_table(figures: dict[str, Any]) -> str:
    """Return the figures as lines for a screen."""
    lines = [
        f"{figures['checkpoint']} (epoch {figures['epoch']}, step {figures['step']}) on the {figures['split']} split "
        f"of {figures['shards']}: {figures['hours']:.2f} hours, {len(figures['recordings'])} recordings"
    ]
    units = {"error_levels": "mean absolute error, levels", "bits_per_frame": "bits per frame"}
    for name, unit in units.items():
        rows = {label: values[name] for label, values in figures["baselines"].items() if name in values}
        if name in figures["held_out"]:
            rows["this network"] = figures["held_out"][name]
            lines += [f"\n{unit}"] + [f"  {value:8.3f}  {label}" for label, value in rows.items()]
            part = name.split("_")[0] + "/"
            lines += [
                f"    {value:8.3f}  {label.removeprefix(part)}"
                for label, value in figures["held_out"].items()
                if label.startswith(part)
            ]
    if "training_error_2017" in figures:
        lines.append(
            f"\n{figures['training_error_2017']:10.3f}  the 2017 training error (last frame of windows it has "
            "trained on): what it remembers, no result"
        )
    return "\n".join(lines)


def main() -> None:
    """Run `python -m babble.evaluate`."""
    run_command(
        EvaluateConfig, lambda config: print(format_table(evaluate(config))), "python -m babble.evaluate", "run"
    )


if __name__ == "__main__":
    main()
