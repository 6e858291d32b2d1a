"""Make a voice from recordings of a few minutes to hours: fine-tune the bundled voice on them.

    babble voice my.mp3
    babble voice chapter-1.mp3 chapter-2.mp3 --name ann
    babble voice book.zip --init-from runs/other-book --name book

1. The recordings are encoded as shards/NAME (jobs/preprocess); of a single recording, the end is held out.
2. A network of the same shape as the bundled voice, starting from its weights before it received tokens, is trained on
   them as runs/NAME, without tokens. Its steps follow from the amount of speech, processes and precision from this
   machine. It ends early when validation gets worse, and keeps its best weights. On one core this takes about a
   minute for one minute of speech, and about 20 minutes for an hour.
3. runs/NAME/report.html shows the training and plays samples.

Ctrl-C stops it, and the same command continues from there. Other settings: babble preprocess, then babble train.
"""

import os
import shlex
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from babble.cli import CommandError, build_config, run_command
from babble.codec.frames import TOKENS
from babble.data.config import DataConfig
from babble.data.shards import read_manifest
from babble.model.config import ModelConfig
from babble.run_folder import PRETRAINED, RunFolder, locate_checkpoint
from babble.train import train
from babble.training.config import ComputeConfig, OptimConfig, SamplesConfig, StopConfig, TrainConfig
from babble.training.wandb_run import WandbConfig
from jobs.preprocess.config import PreprocessConfig
from preprocessing.split import SplitConfig

if TYPE_CHECKING:
    from babble.training.trainer import TrainResult

# Rows of a batch, over all processes, and frames per row.
BATCH_SIZE, CHUNK_FRAMES = 16, 64
# Nothing for a test: of a minute of speech, each second counts.
SPLIT = SplitConfig(validation_fraction=0.1, test_fraction=0.0)
# Less than a batch of chunks otherwise.
MIN_SECONDS = 20
# More processes would have too few rows each.
MAX_PROCESSES = 2


@dataclass(frozen=True)
class VoiceConfig:
    """Make a voice from your own recordings.

    Attributes:
        recordings: files, folders and zips of one voice, a minute or more.
        name: name of the voice: the run is runs/NAME; by default the name of the first recording.
        init_from: run folder or checkpoint to start from; the bundled voice by default.
        runs: folder of all runs.
        shards: folder of all shards.
        seed: random seed of the training.
        wandb: W&B settings.
    """

    recordings: tuple[Path, ...] = ()
    name: str | None = None
    init_from: Path | None = None
    runs: Path = Path("runs")
    shards: Path = Path("shards")
    seed: int = 0
    wandb: WandbConfig = field(default_factory=lambda: WandbConfig(mode="off"))

    def __post_init__(self) -> None:
        """Validate that recordings are named; derive and validate the name."""
        if not self.recordings:
            raise ValueError("name the recordings of the voice: babble voice my.mp3")
        if self.name is None:
            object.__setattr__(self, "name", self.recordings[0].absolute().stem)
        if not self.name or "/" in self.name or self.name.startswith("."):
            raise ValueError(f"--name {self.name!r} can't be the name of a folder.")


def find_start(init_from: Path | None) -> Path:
    """Return the checkpoint that a voice starts from: the named one, or the bundled network without tokens.

    Raises:
        FileNotFoundError, ValueError: as `locate_checkpoint`.
    """
    # Continued without the tokens that it was trained with, the network that generates ends up to 0.24 bits worse.
    return locate_checkpoint(init_from)[1] if init_from else locate_checkpoint(PRETRAINED, "stage-1")[1]


def choose_training(shards: Path, minutes: float, model: ModelConfig, cores: int, gpus: int) -> dict[str, Any]:
    """Return the sections of a `TrainConfig` that depend on the amount of speech and on the machine.

    Args:
        shards: folder of shards.
        minutes: speech for training, without the shifted recordings.
        model: architecture of the voice to start from.
        cores: CPU cores.
        gpus: GPUs.
    """
    steps = round(min(3000.0, max(80.0, 60 * minutes)))
    processes = 1 if gpus else min(cores, MAX_PROCESSES)
    data = DataConfig(
        shards,
        reading="streams",
        window_frames=CHUNK_FRAMES,
        batch_size=BATCH_SIZE // processes,
        windows_per_epoch=BATCH_SIZE * max(25, steps // 12),
    )
    return {
        "data": data,
        # The less speech, the sooner it is memorised (docs/results.md).
        "model": replace(model, dropout=0.5 if minutes < 3 else 0.35, tokens=0),
        "optim": OptimConfig(lr=0.002, schedule="cosine", warmup_steps=20),
        "stop": StopConfig(steps=steps, patience=3),
        "compute": ComputeConfig(
            devices=processes,
            precision="auto",
            threads=None if gpus else 1,
        ),
    }


def _encode(config: VoiceConfig, shards: Path, mode: str) -> None:
    """Encode the recordings; raises as `preprocess`, with the flags of this command."""
    from jobs.preprocess.job import preprocess

    try:
        preprocess(PreprocessConfig(config.recordings, shards, mode, split=SPLIT))  # type: ignore[arg-type]
    except (CommandError, ValueError, OSError) as error:
        message = str(error).replace(f"--out {shards}", f"--name {config.name}: {shards}")
        message = message.replace("another --out", "another --name").replace("--out", "--shards")
        message = message.replace("--sources", "--recordings")
        if message == str(error):
            raise
        raise type(error)(message) from None


def _continue(config: VoiceConfig, found: TrainConfig, start: Path) -> TrainConfig:
    """Return the settings of a run that exists, perhaps from another machine, with those that the user gives now."""
    if config.init_from is None and found.init_from and found.init_from.parts[-4:] == start.parts[-4:]:
        # The bundled voice, which each machine has in its own place.
        start = found.init_from
    return replace(found, name=config.name, runs=config.runs, init_from=start, seed=config.seed, wandb=config.wandb)


def make_voice(config: VoiceConfig) -> "TrainResult":
    """Encode the recordings and fine-tune a voice on them, or continue where an earlier call stopped.

    Raises:
        FileNotFoundError, ValueError: unusable recordings, voice to start from, or settings; or the run exists with
            other settings.
        CommandError, Interrupted: as `preprocess` and `train`.
    """
    # Imported here: torch takes seconds, which --help and a refused setting need not wait for.
    import torch

    from babble.model.checkpoint import build_model, load_checkpoint
    from babble.training.trainer import is_first_rank

    path = find_start(config.init_from)
    start = build_model(load_checkpoint(path))
    if start.mode == TOKENS:
        raise ValueError(f"--init-from {config.init_from} was trained on tokens, which have no sound: name a voice.")
    shards = config.shards / str(config.name)
    # The second process of the training runs this too.
    if is_first_rank():
        _encode(config, shards, start.mode.name)
    run = RunFolder(config.runs / str(config.name))
    if run.config.is_file():
        return train(_continue(config, build_config(TrainConfig, run.read_config()), path))
    minutes = read_manifest(shards).split_hours("train") * 60
    if minutes * 60 < MIN_SECONDS:
        raise ValueError(
            f"{shards} has {minutes * 60:.0f} s of speech for training, but {MIN_SECONDS} are needed: name more "
            "recordings, and another --name."
        )
    cores, gpus = len(os.sched_getaffinity(0)), torch.cuda.device_count()
    chosen = choose_training(shards, minutes, start.config, cores, gpus)
    return train(
        TrainConfig(
            name=config.name,
            recipe="voice",
            runs=config.runs,
            samples=SamplesConfig(every_epochs=4),
            init_from=path,
            seed=config.seed,
            wandb=config.wandb,
            **chosen,
        )
    )


def _run(config: VoiceConfig) -> None:
    from babble.training.trainer import is_first_rank

    result = make_voice(config)
    if not is_first_rank():
        return
    run = shlex.quote(str(result.run))
    print(f"{result.run}: {result.monitor} {result.best:.2f} after {result.steps} steps.")
    print(f"Report: {shlex.quote(str(RunFolder(result.run).report))}")
    # Not the name of the recording, which may be in this folder.
    print(f"Listen: babble generate {run} --seconds 60 --out {shlex.quote(f'{config.name}-babble.wav')}")


def main() -> None:
    """Run `babble voice`."""
    run_command(VoiceConfig, _run, "babble voice", positional="recordings")


if __name__ == "__main__":
    main()
