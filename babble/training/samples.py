"""Hear and see a run while it trains: the callback that lets it babble from the same held-out prompts again and again.

In the run folder:

    samples/prompts/1.c2 ...             the prompts, and prompts.json: where they are from
    samples/real/1.wav 1.c2 1.png ...  what the voice itself said there, once: sound, frames and plot
    samples/real/progression.png       the 2017 progression plot of the held-out speech
    samples/epoch-0060/1.wav ...       what the network says, and its progression plot
    samples/*/measures.json            how each clip sounds behind its prompt, by measure

and the same in the W&B run; means of the measures are figures, `sound/MEASURE` and `samples/real/MEASURE`.
"""

import json
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytorch_lightning as pl
import soundfile

from babble.codec.codec2 import decode_frames, read_c2, write_c2
from babble.codec.frames import SAMPLE_RATE_HZ, Mode
from babble.data.shards import Segment
from babble.evaluation.clips import find_pause_db, measure_clip
from babble.files import write_bytes, write_json
from babble.generation.free_run import generate_frames
from babble.model.sampling import Sampling
from babble.reporting.plots.figures import save_figure
from babble.reporting.plots.progression import plot_progression
from babble.reporting.plots.speech import plot_speech
from babble.run_folder import RunFolder
from babble.training.averaging import averaged_weights
from babble.training.unfreezing import Stage, stage_at
from babble.training.wandb_run import WandbRun

# How it sounds at a glance, of those that `babble.evaluate` shows: whether it moves, is in order, pauses and intones.
MEASURES = ("change_levels", "lsp_disorder", "energy_db", "pauses", "voiced", "pitch_hz", "pitch_range_semitones")
# Of one clip; None where there is none, as the pitch of a clip without voice.
Measures = dict[str, float | None]


@dataclass(frozen=True)
class SamplesConfig:
    """What is heard while a run trains.

    Attributes:
        every_epochs: how often; the end of every unfreezing stage and of the training is heard in any case. 0 for
            never else.
        prompts: how many held-out places are continued.
        prompt_frames: how much real speech the network hears first.
        frames: how much it then says.
        temperature: for heads with a likelihood; see `babble.generate`.
    """

    every_epochs: int = 20
    prompts: int = 3
    prompt_frames: int = 200
    frames: int = 400
    temperature: float = 1.0

    def __post_init__(self) -> None:
        """Refuse sizes of nothing."""
        for key in ("prompts", "prompt_frames", "frames"):
            if getattr(self, key) < 1:
                raise ValueError(f"samples.{key}={getattr(self, key)}: at least 1 is needed.")
        if self.every_epochs < 0:
            raise ValueError(f"samples.every_epochs={self.every_epochs}: 0 or more is needed.")
        if self.temperature <= 0:
            raise ValueError(f"samples.temperature={self.temperature}: above 0 is needed.")


def choose_places(lengths: list[int], prompts: int, frames: int) -> list[tuple[int, int]]:
    """Return places (recording, first frame) spread evenly over held-out speech; the same for the same lengths.

    Args:
        lengths: frames of each recording.
        prompts: how many places.
        frames: how much must follow in the recording; a shorter recording gives what it has from its start.
    """
    total, places = sum(lengths), []
    for number in range(prompts):
        at = int(total * (number + 0.5) / prompts)
        for recording, length in enumerate(lengths):
            if at < length:
                places.append((recording, max(0, min(at, length - frames))))
                break
            at -= length
    return places


def is_heard(epoch: int, every_epochs: int, stages: tuple[Stage, ...]) -> bool:
    """Return whether one listens at the end of an epoch counted from 0."""
    ends_stage = bool(stages) and stage_at(epoch, stages) != stage_at(epoch + 1, stages)
    return ends_stage or (every_epochs > 0 and (epoch + 1) % every_epochs == 0)


class SampleWriter(pl.Callback):
    """Lets the network continue the run's prompts at the end of the epochs that `is_heard` names, and of the training.

    Args:
        config: how often, how many, how long.
        run: the run's folder; prompts that it holds are kept.
        held_out: the validation recordings that prompts are taken from.
        mode: their mode.
        stages: the unfreezing, whose stage ends are heard.
        wandb: the W&B run, if there is one.
    """

    def __init__(
        self,
        config: SamplesConfig,
        run: RunFolder,
        held_out: list[Segment],
        mode: Mode,
        stages: tuple[Stage, ...],
        wandb: WandbRun | None = None,
    ) -> None:
        self.config = config
        self.run = run
        self.held_out = held_out
        self.mode = mode
        self.stages = stages
        self.wandb = wandb
        self.pause_db = find_pause_db([recording.frames for recording in held_out], mode)
        self.heard_epoch = -1

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Keep the prompts and the real speech in the run folder, once."""
        done = self.run.samples / "real" / "measures.json"
        if not trainer.is_global_zero or done.is_file():
            return
        length = self.config.prompt_frames + self.config.frames
        places = choose_places([len(r.frames) for r in self.held_out], self.config.prompts, length)
        real, about = [], []
        for number, (recording, first) in enumerate(places, 1):
            held_out = self.held_out[recording]
            frames = held_out.frames[first : first + length]
            write_c2(self.run.prompts / f"{number}.c2", frames[: self.config.prompt_frames], self.mode)
            about.append(
                {"prompt": number, "recording": held_out.recording, "first_frame": held_out.first_frame + first}
            )
            real.append(frames)
        write_bytes(self.run.prompts / "prompts.json", (json.dumps(about, indent=2) + "\n").encode())
        corpus = np.concatenate([held_out.frames for held_out in self.held_out])
        self._keep(trainer, "real", real, corpus)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Listen, where it is time."""
        if is_heard(trainer.current_epoch, self.config.every_epochs, self.stages):
            self._listen(trainer, pl_module, trainer.current_epoch)

    def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Listen to what the training has come to, once."""
        epoch = max(0, trainer.current_epoch - 1)
        if not (self.run.samples / _folder_name(epoch) / "measures.json").is_file():
            self._listen(trainer, pl_module, epoch)

    def _listen(self, trainer: pl.Trainer, pl_module: Any, epoch: int) -> None:
        if not trainer.is_global_zero or self.heard_epoch == epoch:
            return
        self.heard_epoch = epoch
        prompts = [read_c2(path)[0] for path in sorted(self.run.prompts.glob("*.c2"), key=lambda path: int(path.stem))]
        shortest = min(len(prompt) for prompt in prompts)
        prompts_BTF = np.stack([prompt[-shortest:] for prompt in prompts])
        was_training = pl_module.training
        pl_module.eval()
        sampling = Sampling.for_mode(self.mode, temperature=str(self.config.temperature))
        with averaged_weights(trainer, pl_module):
            said = generate_frames(pl_module.model, prompts_BTF, self.config.frames, sampling)
        pl_module.train(was_training)
        clips = list(np.concatenate([prompts_BTF, said], axis=1))
        self._keep(trainer, _folder_name(epoch), clips, np.concatenate(list(said)))

    def _keep(self, trainer: pl.Trainer, name: str, clips: list[np.ndarray], corpus: np.ndarray) -> None:
        folder = self.run.samples / name
        folder.mkdir(parents=True, exist_ok=True)
        for number, frames in enumerate(clips, 1):
            write_c2(folder / f"{number}.c2", frames, self.mode)
            pcm = decode_frames(frames, self.mode)
            soundfile.write(folder / f"{number}.wav", pcm, SAMPLE_RATE_HZ)
            title = f"{self.run.path.name}, {name}, prompt {number}"
            figure = plot_speech(frames, self.mode, pcm, title=title, prompt_frames=self.config.prompt_frames)
            save_figure(figure, folder / f"{number}.png")
        figure = plot_progression({name: corpus}, self.mode, title=f"{self.run.path.name}, {name}: now against next")
        save_figure(figure, folder / "progression.png")
        self._tell(trainer, name, [self._measure(frames[-self.config.frames :]) for frames in clips])

    def _measure(self, frames: np.ndarray) -> Measures:
        measures = measure_clip(frames, self.mode, self.pause_db) if len(frames) > 1 else {}
        return {m: None if math.isnan(measures[m]) else measures[m] for m in MEASURES if m in measures}

    def _tell(self, trainer: pl.Trainer, name: str, measures: list[Measures]) -> None:
        """Keep the measures, log their means beside those of the real speech, and show all that was heard in W&B."""
        write_json(self.run.samples / name / "measures.json", measures)
        real = json.loads((self.run.samples / "real" / "measures.json").read_text())
        if name != "real":
            figures = {"epoch": self.heard_epoch} | {f"samples/{m}": mean for m, mean in _means(measures).items()}
            figures |= {f"samples/real/{m}": mean for m, mean in _means(real).items()}
            for logger in trainer.loggers:
                logger.log_metrics(figures, max(0, trainer.global_step - 1))
        if self.wandb:
            self.wandb.log_samples(name, trainer.global_step, self.run.samples / name, measures, real)


def _folder_name(epoch: int) -> str:
    # Epochs are counted from 1 where a person reads them.
    return f"epoch-{epoch + 1:04d}"


def _means(clips: list[Measures]) -> dict[str, float]:
    """Return each measure's mean over the clips that have it: those without voice have no pitch."""
    known = {m: [value for clip in clips if (value := clip[m]) is not None] for m in clips[0]}
    return {m: sum(values) / len(values) for m, values in known.items() if values}
