"""What fine-tuning brings, by the minutes of speech: against training from scratch, and by what is frozen.

    python -m jobs.fine_tuning --shards shards/ann shards/me --out fine-tuning

For each voice, amount of speech, method and seed: the training of `babble voice` on the first minutes of the voice's
training split, on one core; measured on its whole validation split. Methods:

    scratch    the small network of configs/demo.yaml, from random weights
    all        from the bundled voice, all layers trained, as `babble voice` does it
    ends       only input layer and head trained
    upper      the upper layer trained for the first third, then all

A row per training is appended to OUT/fine-tuning.csv, one per validation to OUT/curves.csv; at the end OUT/VOICE.png
shows them. Trainings with a row are skipped, so a stopped comparison continues.
"""

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure

from babble.cli import CommandError, config_to_dict, run_command, to_yaml
from babble.data.shards import SHIFTED, Manifest, Segment, read_manifest, read_recordings, write_manifest, write_shards
from babble.files import read_json, read_json_lines, write_bytes
from babble.model.checkpoint import build_model, load_checkpoint
from babble.model.config import ModelConfig
from babble.reporting.plots.figures import make_grid, open_figure, save_figure
from babble.run_folder import RunFolder
from babble.training.config import SamplesConfig, Stage, TrainConfig
from babble.training.wandb_run import WandbConfig
from babble.voice import choose_training, find_start
from jobs.experiments import append_row, read_rows
from preprocessing.encode import list_encodings

Method = Literal["scratch", "all", "ends", "upper"]
ENTRIES_PER_SHARD = 64
# Of the lines, by method.
STYLES = {"scratch": ":", "all": "-", "ends": "--", "upper": "-."}


@dataclass(frozen=True)
class FineTuningConfig:
    """Compare fine-tuning with training from scratch, by minutes of speech.

    Attributes:
        shards: Folders of shards, one per voice.
        out: Folder for runs and tables.
        minutes: Amounts of speech; those that a voice does not have are left out.
        methods: What to compare.
        seeds: Random seeds of the trainings.
        init_from: Run folder or checkpoint to start from; the bundled voice by default.
        steps: Steps of each training; chosen as by `babble voice` if omitted.
    """

    shards: tuple[Path, ...] = ()
    out: Path = Path("fine-tuning")
    minutes: tuple[str, ...] = ("1", "5", "20", "60")
    methods: tuple[Method, ...] = get_args(Method)
    seeds: tuple[str, ...] = ("0", "1", "2")
    init_from: Path | None = None
    steps: int | None = None

    def __post_init__(self) -> None:
        """Validate that there are voices."""
        if not self.shards:
            raise ValueError("name a folder of shards per voice: --shards shards/ann shards/me")


def cut_training(shards: Path, out: Path, minutes: float) -> Manifest | None:
    """Write shards with the first minutes of the training split, and all of validation; return their manifest.

    Returns:
        None if the training split is shorter.
    """
    manifest = read_manifest(shards)
    num_frames = round(minutes * 60 * manifest.mode.frames_per_second)
    if manifest.split_frames("train") < num_frames:
        return None
    if (out / "manifest.json").is_file():
        return read_manifest(out)
    out.mkdir(parents=True, exist_ok=True)
    kept: list[Segment] = []
    for recording in read_recordings(shards, manifest, "train"):
        kept.append(replace(recording, frames=recording.frames[:num_frames]))
        num_frames -= len(kept[-1].frames)
        if not num_frames:
            break
    kept_by_name = {recording.recording: recording for recording in kept}
    encodings = list_encodings(manifest.settings.get("shifts", 1), manifest.settings.get("speeds", (1.0,)))
    again = []
    for recording in read_recordings(shards, manifest, SHIFTED):
        for encoding in encodings[1:]:
            # Each is named after its recording.
            origin = kept_by_name.get(recording.recording.removesuffix(f" ({encoding.name})"))
            if origin is not None:
                end = encoding.count_until(origin.first_frame + len(origin.frames))
                again.append(replace(recording, frames=recording.frames[: end - recording.first_frame]))
    splits = {"train": kept, "validation": read_recordings(shards, manifest, "validation"), SHIFTED: again}
    facts = [
        fact
        for split, recordings in splits.items()
        for fact in write_shards(out, split, recordings, manifest.mode, ENTRIES_PER_SHARD)
    ]
    rows = {
        split: [
            {"name": r.recording, "split": split, "first_frame": r.first_frame, "frames": len(r.frames)}
            for r in recordings
        ]
        for split, recordings in splits.items()
    }
    recordings = [*rows["train"], *rows["validation"]]
    cut = Manifest(manifest.mode, manifest.settings, recordings, facts, [], shifted=rows[SHIFTED])
    write_manifest(out, cut)
    return cut


def make_config(
    config: FineTuningConfig, shards: Path, minutes: float, method: Method, seed: int, model: ModelConfig
) -> TrainConfig:
    """Return the training of one row."""
    if method == "scratch":
        model = ModelConfig(num_layers=2, units=160, skips=True)
    chosen = choose_training(shards, minutes, model, cores=1, gpus=0)
    if config.steps:
        chosen["stop"] = replace(chosen["stop"], steps=config.steps)
    if method == "scratch":
        chosen["optim"] = replace(chosen["optim"], lr=0.003)
    upper = tuple(range(2, model.num_layers + 1)) or (1,)
    # Twelve epochs, as choose_training has them.
    stages = {"ends": (Stage(()),), "upper": (Stage(upper, 4), Stage(tuple(range(1, model.num_layers + 1))))}
    return TrainConfig(
        name=f"{shards.name}-{method}-{seed}",
        runs=config.out / "runs",
        samples=SamplesConfig(every_epochs=0),
        unfreezing=stages.get(method, ()),
        init_from=None if method == "scratch" else find_start(config.init_from),
        log_every_steps=10,
        seed=seed,
        wandb=WandbConfig(mode="off"),
        **chosen,
    )


def _train(config: TrainConfig) -> RunFolder:
    """Train in a process of its own, or continue an earlier start.

    Raises:
        CommandError: it failed; the message shows the end of its stderr.
    """
    path = config.runs / f"{config.name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, to_yaml(config_to_dict(config)))
    command = [sys.executable, "-m", "babble.train", "--config", str(path)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        raise CommandError(f"{' '.join(command)} failed:\n{done.stderr[-1000:]}")
    return config.run


def read_curve(run: RunFolder) -> list[dict[str, Any]]:
    """Return each validation of a run: its step, seconds of training until then, and bits per frame."""
    rows, seconds, last_step, curve = read_json_lines(run.metrics), 0.0, -1, []
    frames = read_json(run.finished)["frames"] / read_json(run.finished)["steps"]
    for row in rows:
        if "train/frames_per_second" in row:
            seconds += (row["step"] - last_step) * frames / row["train/frames_per_second"]
            last_step = row["step"]
        if "val/bits_per_frame" in row:
            curve.append({"step": row["step"], "seconds": round(seconds), "bits": round(row["val/bits_per_frame"], 3)})
    return curve


def plot_curves(points: Sequence[Mapping[str, str]]) -> Figure:
    """Return bits per frame on held-out speech by steps of training: a colour per amount of speech, a line per seed.

    Args:
        points: rows of curves.csv of one voice.
    """
    figure = open_figure(6.0, f"{points[0]['voice']}: fine-tuning, by minutes of speech")
    panel = figure.add_subplot(make_grid(figure, 1, 1)[0])
    minutes = sorted({point["minutes"] for point in points}, key=float)
    colours = dict(zip(minutes, colormaps["viridis"](np.linspace(0.0, 0.85, len(minutes))), strict=True))
    lines: dict[tuple[str, str, str], list[Mapping[str, str]]] = {}
    for point in points:
        lines.setdefault((point["minutes"], point["method"], point["seed"]), []).append(point)
    named = set()
    for (amount, method, _), line in sorted(lines.items(), key=lambda item: (float(item[0][0]), item[0])):
        label = f"{amount} minutes, {method}"
        steps, bits = [[float(point[column]) for point in line] for column in ("step", "bits")]
        panel.plot(steps, bits, STYLES[method], color=colours[amount], label=None if label in named else label)
        named.add(label)
    panel.set_xlabel("step")
    panel.set_ylabel("bits per frame, held-out speech")
    panel.grid(alpha=0.3)
    panel.legend(fontsize="small")
    return figure


def compare(config: FineTuningConfig) -> None:
    """Append a row per training to OUT/fine-tuning.csv, and its validations to OUT/curves.csv; draw these.

    Raises:
        CommandError: a training failed.
    """
    table = config.out / "fine-tuning.csv"
    done = {(row["voice"], row["minutes"], row["method"], row["seed"]) for row in read_rows(table)}
    model = build_model(load_checkpoint(find_start(config.init_from))).config
    for shards in config.shards:
        for minutes in config.minutes:
            folder = config.out / "shards" / f"{shards.name}-{minutes}"
            if cut_training(shards, folder, float(minutes)) is None:
                continue
            for method in config.methods:
                for seed in config.seeds:
                    row: dict[str, Any] = {"voice": shards.name, "minutes": minutes, "method": method, "seed": seed}
                    if tuple(row.values()) in done:
                        continue
                    run = _train(make_config(config, folder, float(minutes), method, int(seed), model))
                    curve = read_curve(run)
                    best = min(curve, key=lambda point: point["bits"])
                    for point in curve:
                        append_row(config.out / "curves.csv", {**row, **point})
                    row |= {"bits_per_frame": best["bits"], "step": best["step"], "seconds": best["seconds"]}
                    append_row(table, row)
                    print(json.dumps(row), flush=True)
    points = read_rows(config.out / "curves.csv")
    for voice in dict.fromkeys(point["voice"] for point in points):
        own = [point for point in points if point["voice"] == voice]
        save_figure(plot_curves(own), config.out / f"{voice}.png")


if __name__ == "__main__":
    run_command(FineTuningConfig, compare, "python -m jobs.fine_tuning", positional="shards")
