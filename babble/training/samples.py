"""Samples: audio that the network generates during training, always from the same validation prompts.

In the run folder:

    samples/prompts/1.c2 ...           the prompts; prompts.json says where they are from
    samples/real/1.wav 1.c2 1.png ...  the recording itself at each prompt: audio, frames and plot
    samples/real/progression.png       progression plot of the validation recordings
    samples/epoch-0060/1.wav ...       prompt and generated frames, likewise
    samples/*/statistics.json          speech statistics of each clip without its prompt

The same is logged to W&B. The means of the statistics are logged as metrics, `samples/STATISTIC` and
`samples/real/STATISTIC`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytorch_lightning as pl
import soundfile

from babble.codec.codec2 import decode_frames, read_c2, write_c2
from babble.codec.frames import SAMPLE_RATE_HZ, Mode
from babble.data.shards import Segment
from babble.evaluation.clips import find_pause_db, measure_clip
from babble.files import read_json, write_json
from babble.generation.free_run import generate_frames
from babble.generation.token_run import load_token_level
from babble.model.sampling import Sampling
from babble.reporting.plots.figures import save_figure
from babble.reporting.plots.progression import plot_progression
from babble.reporting.plots.speech import plot_speech
from babble.run_folder import RunFolder
from babble.training.checkpoints import averaged_weights
from babble.training.config import SamplesConfig, Stage
from babble.training.metrics import WandbMetrics
from babble.training.unfreezing import ends_stage

# Those of `babble.evaluate` that show at a glance whether speech moves, is in order, pauses and has intonation.
STATISTICS = ("change_levels", "lsp_disorder", "energy_db", "pauses", "voiced", "pitch_hz", "pitch_range_semitones")
# Of one clip; None if it has none, e.g. no pitch in a clip without voice.
ClipStatistics = dict[str, float | None]


@dataclass(frozen=True)
class Prompt:
    """Where a prompt is from.

    Attributes:
        recording: index of the validation recording.
        first_frame: first frame of the prompt in it.
        frames: length of the prompt; the recording continues for at least one more frame.
    """

    recording: int
    first_frame: int
    frames: int


def choose_prompts(lengths: Sequence[int], config: SamplesConfig) -> list[Prompt]:
    """Return prompts spread evenly over the validation recordings; always the same for the same lengths.

    Recordings that are not longer than a prompt are left out; if all are, prompts are half of the longest one. A prompt
    starts early enough that `config.frames` follow it, if the recording is long enough.

    Args:
        lengths: frames of each recording, at least 2 in one of them.
        config: number and length of the prompts.
    """
    prompt_frames = config.prompt_frames
    if max(lengths) <= prompt_frames:
        prompt_frames = max(lengths) // 2
    usable = [length if length > prompt_frames else 0 for length in lengths]
    prompts = []
    for number in range(config.prompts):
        position = int(sum(usable) * (number + 0.5) / config.prompts)
        for recording, length in enumerate(usable):
            if position < length:
                latest = max(0, length - prompt_frames - config.frames)
                prompts.append(Prompt(recording, min(position, latest), prompt_frames))
                break
            position -= length
    return prompts


def has_samples(epoch: int, every_epochs: int, stages: tuple[Stage, ...]) -> bool:
    """Return whether there are samples at the end of an epoch counted from 0."""
    return ends_stage(epoch, stages) or (every_epochs > 0 and (epoch + 1) % every_epochs == 0)


class SampleWriter(pl.Callback):
    """Continues the run's prompts at the end of the epochs of `has_samples`, and of the training.

    Args:
        config: how often, how many, how long.
        run: the run's folder; existing prompts are kept.
        held_out: the validation recordings that prompts are taken from.
        mode: their mode.
        stages: of the unfreezing.
    """

    def __init__(
        self, config: SamplesConfig, run: RunFolder, held_out: list[Segment], mode: Mode, stages: tuple[Stage, ...]
    ) -> None:
        self.config = config
        self.run = run
        self.held_out = held_out
        self.mode = mode
        self.stages = stages
        self.pause_db = find_pause_db([recording.frames for recording in held_out], mode)
        self.last_epoch = -1

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the prompts and the recordings at the prompts, once."""
        done = self.run.samples / "real" / "statistics.json"
        if not trainer.is_global_zero or done.is_file():
            return
        prompts = choose_prompts([len(recording.frames) for recording in self.held_out], self.config)
        if prompts[0].frames < self.config.prompt_frames:
            print(
                f"samples.prompt_frames={self.config.prompt_frames}: all validation recordings are shorter, so prompts "
                f"have {prompts[0].frames} frames.",
                flush=True,
            )
        clips, sources = [], []
        for number, prompt in enumerate(prompts, 1):
            source = self.held_out[prompt.recording]
            clip = source.frames[prompt.first_frame :][: prompt.frames + self.config.frames]
            clips.append(clip)
            write_c2(self.run.prompts / f"{number}.c2", clip[: prompt.frames], self.mode)
            first_frame = source.first_frame + prompt.first_frame
            sources.append({"prompt": number, "recording": source.recording, "first_frame": first_frame})
        write_json(self.run.prompts / "prompts.json", sources)
        corpus = np.concatenate([recording.frames for recording in self.held_out])
        self._write(trainer, "real", clips, prompts[0].frames, corpus)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Generate samples if it is time."""
        if has_samples(trainer.current_epoch, self.config.every_epochs, self.stages):
            self._generate(trainer, pl_module, trainer.current_epoch)

    def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Generate samples of the finished training, once."""
        epoch = max(0, trainer.current_epoch - 1)
        if not (self.run.samples / _folder_name(epoch) / "statistics.json").is_file():
            self._generate(trainer, pl_module, epoch)

    def _generate(self, trainer: pl.Trainer, pl_module: Any, epoch: int) -> None:
        if not trainer.is_global_zero or self.last_epoch == epoch:
            return
        self.last_epoch = epoch
        prompts = [read_c2(path)[0] for path in sorted(self.run.prompts.glob("*.c2"), key=lambda path: int(path.stem))]
        prompts_BTF = np.stack(prompts)
        was_training = pl_module.training
        pl_module.eval()
        sampling = Sampling.for_mode(self.mode, temperature=str(self.config.temperature))
        with averaged_weights(trainer):
            tokens = load_token_level(self.run, pl_module.model)
            generated_BTF = generate_frames(pl_module.model, prompts_BTF, self.config.frames, sampling, tokens=tokens)
        pl_module.train(was_training)
        clips = list(np.concatenate([prompts_BTF, generated_BTF], axis=1))
        self._write(trainer, _folder_name(epoch), clips, prompts_BTF.shape[1], np.concatenate(list(generated_BTF)))

    def _write(
        self, trainer: pl.Trainer, name: str, clips: list[np.ndarray], prompt_frames: int, corpus: np.ndarray
    ) -> None:
        """Write clips with their plots and statistics to samples/NAME, and log them.

        Args:
            trainer: its loggers get the statistics.
            name: "real", or the epoch as in "epoch-0060".
            clips: frames (T, F), the prompt first.
            prompt_frames: length of the prompt.
            corpus: frames (T, F) of the progression plot.
        """
        folder = self.run.samples / name
        folder.mkdir(parents=True, exist_ok=True)
        for number, frames in enumerate(clips, 1):
            write_c2(folder / f"{number}.c2", frames, self.mode)
            pcm = decode_frames(frames, self.mode)
            soundfile.write(folder / f"{number}.wav", pcm, SAMPLE_RATE_HZ)
            title = f"{self.run.path.name}, {name}, prompt {number}"
            figure = plot_speech(frames, self.mode, pcm, title=title, prompt_frames=prompt_frames)
            save_figure(figure, folder / f"{number}.png")
        figure = plot_progression({name: corpus}, self.mode, title=f"{self.run.path.name}, {name}: now against next")
        save_figure(figure, folder / "progression.png")
        statistics = [self._measure(frames[prompt_frames:]) for frames in clips]
        write_json(folder / "statistics.json", statistics)
        self._log(trainer, name, statistics)

    def _measure(self, frames: np.ndarray) -> ClipStatistics:
        measured = measure_clip(frames, self.mode, self.pause_db) if len(frames) > 1 else {}
        return {name: None if math.isnan(measured[name]) else measured[name] for name in STATISTICS if name in measured}

    def _log(self, trainer: pl.Trainer, name: str, statistics: list[ClipStatistics]) -> None:
        """Log the means, of the recordings too, and show the clips in W&B."""
        real: list[ClipStatistics] = read_json(self.run.samples / "real" / "statistics.json")
        if name != "real":
            metrics: dict[str, float] = {"epoch": self.last_epoch}
            metrics |= {f"samples/{statistic}": mean for statistic, mean in _means(statistics).items()}
            metrics |= {f"samples/real/{statistic}": mean for statistic, mean in _means(real).items()}
            for logger in trainer.loggers:
                logger.log_metrics(metrics, max(0, trainer.global_step - 1))
        for logger in trainer.loggers:
            if isinstance(logger, WandbMetrics):
                logger.wandb.log_samples(name, trainer.global_step, self.run.samples / name, statistics, real)


def _folder_name(epoch: int) -> str:
    # In folder names, epochs are counted from 1.
    return f"epoch-{epoch + 1:04d}"


def _means(clips: list[ClipStatistics]) -> dict[str, float]:
    """Return the mean of each statistic over the clips that have it: those without voice have no pitch."""
    names = {name: None for clip in clips for name in clip}
    known = {name: [value for clip in clips if (value := clip.get(name)) is not None] for name in names}
    return {name: sum(values) / len(values) for name, values in known.items() if values}
