"""Evaluate a network: metrics of held-out speech and of its babble, with their baselines.

    babble evaluate runs/NAME --split test --json out.json --figure out.png
    babble evaluate runs/NAME --babble-seconds 0
    babble evaluate --shards shards/tale --temperature 0.9

1. The network predicts every frame but the first of each held-out recording, state carried: mean absolute error in
   levels and, if the head has a likelihood, bits per frame; in total, by group and by field, and without the pitch of
   unvoiced frames, with confidence intervals (evaluation/held_out.py).
2. Baselines predict the same frames from the training split of the same shards (evaluation/baselines.py). A training
   split larger than `SAMPLE_FRAMES` of babble.data.streaming is sampled: the table and the JSON say so.
3. The network generates babble from held-out prompts. Its speech statistics and its classifier accuracy are compared
   with those of real speech, shuffled frames and a Markov chain (evaluation/comparison.py). By default this takes about
   eight minutes of one core; steps 1 and 2 take 40 seconds per hour of speech.
4. How much of its context the network uses: what the true past of more than a second ago saves, and whether the true
   continuation is likelier than another one (evaluation/context.py). It takes a minute or two on one core.
5. On request, two more: with --words, the real words in the babble by a recogniser of the voice (evaluation/words.py);
   with --training-windows, the training error of 2017: that of the last frame of windows of the training split.

Without a run, the bundled voice is evaluated, and --shards names the speech. If the run has a W&B run, the metrics are
added to its summary (evaluation/summary.py).
"""

import functools
import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from babble.cli import build_config, run_command
from babble.codec.frames import TOKENS, Mode
from babble.data.shards import Manifest, Segment, read_recordings
from babble.data.streaming import SAMPLE_FRAMES, sample_recordings
from babble.files import check_writable, write_json
from babble.generation.prompts import open_shards, spread_prompts
from babble.model.config import DeviceName
from babble.run_folder import PRETRAINED, RunFolder, locate_checkpoint
from babble.training.wandb_run import WANDB_ID, WandbConfig, reopen_wandb

if TYPE_CHECKING:
    from babble.evaluation.words import Recogniser
    from babble.generation.token_run import TokenLevel
    from babble.model.babbler import Babbler
    from babble.model.sampling import Sampling

# Babble is generated in parallel, each stream from its own prompt.
NUM_STREAMS = 8
# The windows of 2017.
WINDOW_FRAMES = 200


@dataclass(frozen=True)
class EvaluationWandbConfig:
    """W&B settings of an evaluation; project and entity are those of the run.

    Attributes:
        mode: auto: as in the run's config.yaml, and off if the run has no W&B run.
    """

    mode: Literal["auto", "online", "offline", "off"] = "auto"


@dataclass(frozen=True)
class EvaluateConfig:
    """Evaluate a trained network on held-out speech, and its babble.

    Attributes:
        run: run folder, runs/NAME, or a checkpoint file; the bundled voice by default, which needs shards to be named.
        checkpoint: "best", "last", "stage-N", or the path of a checkpoint file.
        shards: folder of shards; the run's own by default.
        split: the split to evaluate on.
        training_windows: number of windows of the training split for the training error of 2017; 0 omits it.
        window_frames: length of these windows.
        babble_seconds: length of each of 8 streams of babble, which are measured as speech; 0 omits them.
        temperature: sampling of the babble, as for `babble generate`.
        top_p: as for `babble generate`.
        min_p: as for `babble generate`.
        token_temperature: as for `babble generate`.
        words: file of a recogniser of this voice, which counts real words in the babble; mode 1300 only.
        device: where the network computes.
        seed: random seed of the babble and of everything sampled to measure it.
        json: write all metrics to this file.
        figure: draw them into this PNG file.
        wandb: W&B settings.
    """

    run: Path | None = None
    checkpoint: str = "best"
    shards: Path | None = None
    split: Literal["validation", "test"] = "validation"
    training_windows: int = 0
    window_frames: int = WINDOW_FRAMES
    babble_seconds: float = 600.0
    temperature: str | float | None = None
    top_p: str | float | None = None
    min_p: str | float | None = None
    token_temperature: float | None = None
    words: Path | None = None
    device: DeviceName = "cpu"
    seed: int = 0
    json: Path | None = None
    figure: Path | None = None
    wandb: EvaluationWandbConfig = field(default_factory=EvaluationWandbConfig)

    def __post_init__(self) -> None:
        """Validate the settings; reject those without effect."""
        if self.training_windows < 0:
            raise ValueError(f"--training-windows {self.training_windows}: must be 0 or more.")
        if self.window_frames < 1:
            raise ValueError(f"--window-frames {self.window_frames}: must be at least 1.")
        if self.window_frames != WINDOW_FRAMES and not self.training_windows:
            raise ValueError("--window-frames has no effect without --training-windows. Remove the flag.")
        if not (self.babble_seconds == 0 or 1 <= self.babble_seconds < math.inf):
            raise ValueError(f"--babble-seconds {self.babble_seconds:g}: must be 0, or at least 1.")
        if self.seed < 0:
            raise ValueError(f"--seed {self.seed}: must be 0 or more.")
        for key in ("temperature", "top_p", "min_p", "token_temperature"):
            if not self.babble_seconds and getattr(self, key) is not None:
                raise ValueError(f"--{key.replace('_', '-')} has no effect with --babble-seconds 0. Remove the flag.")
        if self.words and not self.babble_seconds:
            raise ValueError(f"--words {self.words} has no effect with --babble-seconds 0. Remove the flag.")
        if self.figure and self.figure.suffix != ".png":
            raise ValueError(f"--figure {self.figure}: must end in .png.")


@dataclass(frozen=True)
class _Subject:
    """What is evaluated: a network, how it generates, and the speech that it is compared with."""

    model: "Babbler"
    tokens: "TokenLevel | None"
    sampling: "Sampling"
    token_temperature: float
    recogniser: "Recogniser | None"
    held_out: list[np.ndarray]
    train: list[np.ndarray]


def read_training_speech(folder: Path, manifest: Manifest) -> list[np.ndarray]:
    """Return the training recordings (T, F), or of more than `SAMPLE_FRAMES` frames those of evenly spread shards."""
    if manifest.split_frames("train") <= SAMPLE_FRAMES:
        return [recording.frames for recording in read_recordings(folder, manifest, "train")]
    joined: list[list[Segment]] = []
    for segment in sample_recordings(folder, manifest, "train"):
        last = joined[-1][-1] if joined else None
        if last and (last.recording, last.first_frame + len(last.frames)) == (segment.recording, segment.first_frame):
            joined[-1].append(segment)
        else:
            joined.append([segment])
    return [np.concatenate([segment.frames for segment in segments]) for segments in joined]


def evaluate(config: EvaluateConfig) -> dict[str, Any]:
    """Return all metrics of a run on a held-out split.

    Raises:
        FileNotFoundError, ValueError: an unusable run, checkpoint, folder of shards or setting.
    """
    # Imported here: torch takes seconds, which --help and a refused setting need not wait for.
    from babble.evaluation.summary import summarize_evaluation
    from babble.generation.free_run import choose_sampling
    from babble.generation.token_run import check_token_temperature, load_token_level
    from babble.model.checkpoint import build_model, load_checkpoint

    for flag, path in (("--json", config.json), ("--figure", config.figure)):
        if path:
            check_writable(path, flag)
    run, checkpoint_path = locate_checkpoint(config.run or PRETRAINED, config.checkpoint)
    checkpoint = load_checkpoint(checkpoint_path)
    model = build_model(checkpoint, config.device)
    recogniser = _load_recogniser(config.words, model.mode)
    sampling = choose_sampling(model, config.temperature, config.top_p, config.min_p)
    token_temperature = check_token_temperature(config.token_temperature, model)
    if model.mode == TOKENS and config.babble_seconds:
        raise ValueError(f"{run.path} was trained on tokens, which have no sound: use --babble-seconds 0.")
    tokens = None if model.mode == TOKENS else load_token_level(run, model)
    if tokens and config.training_windows:
        raise ValueError(f"--training-windows {config.training_windows}: not for a voice with tokens. Remove the flag.")
    folder, manifest = open_shards(config.shards, run, model.mode)
    _validate(config, folder, manifest)
    wandb = _choose_wandb(config, run)
    recordings = read_recordings(folder, manifest, config.split)
    held_out = [recording.frames for recording in recordings if len(recording.frames) > 1]
    train = read_training_speech(folder, manifest)
    train_frames = sum(map(len, train))
    frames_per_hour = model.mode.frames_per_second * 3600
    evaluation = {
        "run": str(run.path),
        "checkpoint": str(checkpoint_path),
        "epoch": checkpoint["epoch"],
        "step": checkpoint["global_step"],
        "shards": str(folder),
        "split": config.split,
        "recordings": [recording.recording for recording in recordings],
        "hours": sum(map(len, held_out)) / frames_per_hour,
        "train": {
            "hours": train_frames / frames_per_hour,
            "split_hours": manifest.split_hours("train"),
            "is_sample": train_frames < manifest.split_frames("train"),
        },
        "mode": model.mode.name,
        **_measure(config, _Subject(model, tokens, sampling, token_temperature, recogniser, held_out, train)),
    }
    if config.json:
        write_json(config.json, evaluation)
    if config.figure:
        _draw(evaluation, config.figure)
    if wandb and (wandb_run := reopen_wandb(wandb, run.path)):
        wandb_run.summarize(summarize_evaluation(evaluation))
        wandb_run.close()
    return evaluation


def _draw(evaluation: dict[str, Any], path: Path) -> None:
    from babble.reporting.plots.evaluation import plot_evaluation
    from babble.reporting.plots.figures import save_figure

    save_figure(plot_evaluation(evaluation), path)


def _validate(config: EvaluateConfig, folder: Path, manifest: Manifest) -> None:
    """Raise ValueError if the shards lack what the settings need."""
    from babble.evaluation.words import CLIP_SECONDS

    if not manifest.split_frames(config.split):
        raise ValueError(f"{folder} has no {config.split} split. Choose another --split.")
    if config.words and manifest.split_frames(config.split) < CLIP_SECONDS * manifest.mode.frames_per_second:
        raise ValueError(f"--words {config.words} needs a minute of held-out speech, more than {folder} has.")
    if config.training_windows and manifest.mode.has_labels:
        raise ValueError(
            f"--training-windows {config.training_windows}: mode {manifest.mode.name} has label fields, so it has no "
            "error in levels. Remove the flag."
        )
    if not manifest.split_frames("train"):
        for flag, value in (("babble-seconds", config.babble_seconds), ("training-windows", config.training_windows)):
            if value:
                raise ValueError(f"--{flag} {value:g} needs a training split, which {folder} lacks. Use --{flag} 0.")


def _choose_wandb(config: EvaluateConfig, run: RunFolder) -> WandbConfig | None:
    """Return the W&B settings of the run, with the mode that the user chose; None if it has no W&B run."""
    mode = config.wandb.mode
    if not (run.path / WANDB_ID).is_file() or not run.config.is_file():
        if mode in ("online", "offline"):
            raise ValueError(f"--wandb.mode {mode} has no effect: {run.path} has no W&B run. Remove the flag.")
        return None
    settings = build_config(WandbConfig, run.read_config().get("wandb", {}))
    return settings if mode == "auto" else replace(settings, mode=mode)


def _load_recogniser(path: Path | None, mode: Mode) -> "Recogniser | None":
    from babble.evaluation.words import MODE, Recogniser

    if path and mode.name != MODE.name:
        raise ValueError(f"--words {path}: recognisers are of mode {MODE.name}, this network of {mode.name}.")
    return Recogniser.load(path) if path else None


def _measure(config: EvaluateConfig, subject: _Subject) -> dict[str, Any]:
    from babble.codec.token_sequences import add_context
    from babble.evaluation.baselines import measure_baselines
    from babble.evaluation.context import measure_context
    from babble.evaluation.held_out import measure_held_out, measure_training_error_2017
    from babble.evaluation.token_metrics import measure_tokens

    model, tokens, held_out, train = subject.model, subject.tokens, subject.held_out, subject.train
    mode = model.mode
    sequences = [tokens.tokenizer.find_sequence(frames) for frames in held_out] if tokens else []
    given = [add_context(*pair) for pair in zip(held_out, sequences, strict=True)] if tokens else held_out
    metrics: dict[str, Any] = {
        "held_out": measure_held_out(model, given),
        "baselines": measure_baselines(train, held_out, mode) if train else {},
    }
    if tokens:
        bits = metrics["held_out"]["bits_per_frame"]
        num_frames = sum(map(len, held_out))
        metrics["tokens"] = measure_tokens(
            tokens.model, sequences, num_frames, bits, mode.frames_per_second, config.seed
        )
    elif model.head.has_likelihood and (context := measure_context(model, held_out, config.seed)):
        metrics["context"] = context
    if config.training_windows:
        metrics["training_error_2017"] = measure_training_error_2017(
            model, train, config.training_windows, config.window_frames
        )
    if config.babble_seconds:
        metrics |= _measure_babble(config, subject)
    return metrics


def _measure_babble(config: EvaluateConfig, subject: _Subject) -> dict[str, Any]:
    from babble.evaluation.comparison import compare_speech
    from babble.evaluation.words import measure_words
    from babble.generation.free_run import generate_frames, one_thread

    model, held_out, mode = subject.model, subject.held_out, subject.model.mode
    num_frames = round(config.babble_seconds * mode.frames_per_second)
    sampling = subject.sampling, config.seed, subject.tokens, subject.token_temperature

    @functools.cache
    def make_babble() -> list[np.ndarray]:
        with one_thread():
            return list(generate_frames(model, spread_prompts(held_out, NUM_STREAMS), num_frames, *sampling))

    settings = {key: getattr(config, key) for key in ("temperature", "top_p", "min_p")}
    settings["token_temperature"] = subject.token_temperature if subject.tokens else None
    shape = (NUM_STREAMS, num_frames)
    metrics = {
        "babble": {"streams": NUM_STREAMS, "seconds": config.babble_seconds, **settings},
        "speech": compare_speech(make_babble, shape, held_out, subject.train, mode, config.seed),
    }
    if subject.recogniser:
        metrics["words"] = measure_words(subject.recogniser, {"babble": make_babble()}, held_out, config.seed)
    return metrics


def _run(config: EvaluateConfig) -> None:
    from babble.evaluation.tables import format_evaluation

    print(format_evaluation(evaluate(config)))


def main() -> None:
    """Run `babble evaluate`."""
    run_command(EvaluateConfig, _run, "babble evaluate", "run")


if __name__ == "__main__":
    main()
