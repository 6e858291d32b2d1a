"""The voice that comes with babble: plain weights and config of one run, for those who have trained none.

    python -m babble.voice runs/NAME [--out babble/voice]

Writes OUT/checkpoints/best.ckpt: the run's best weights in half precision, the network's shape, the mode, and how it
was trained. `python -m babble.generate` takes it when no run is named. No speech is in it.
"""

from dataclasses import dataclass
from pathlib import Path

import torch

from babble.cli import run_command
from babble.generate import VOICE
from babble.model.checkpoint import build_model, load_checkpoint
from babble.run_folder import RunFolder


@dataclass(frozen=True)
class VoiceConfig:
    """Make a run's weights the voice that comes with babble.

    Attributes:
        run: the run's folder, runs/NAME.
        checkpoint: "best", "last", "stage-N", or the path of a checkpoint file.
        out: the folder to write.
    """

    run: Path | None = None
    checkpoint: str = "best"
    out: Path = VOICE

    def __post_init__(self) -> None:
        """Refuse to guess whose voice."""
        if self.run is None:
            raise ValueError("name the run whose voice it is: python -m babble.voice runs/NAME")


def export_voice(config: VoiceConfig) -> Path:
    """Return the checkpoint written.

    Raises:
        FileNotFoundError, ValueError: a run or checkpoint that can't be; the message says which.
    """
    assert config.run is not None
    run = RunFolder(config.run)
    checkpoint = load_checkpoint(run.find_checkpoint(config.checkpoint))
    build_model(checkpoint)
    weights = {name: value.half() for name, value in checkpoint["state_dict"].items() if name.startswith("model.")}
    kept = {key: checkpoint[key] for key in ("hyper_parameters", "bypassed_layers", "epoch", "global_step")}
    # What it was trained on and how, but not where that lay.
    trained = {
        key: value for key, value in run.read_config().items() if key in ("model", "optim", "unfreezing", "stop")
    }
    path = RunFolder(config.out).checkpoint("best")
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({**kept, "state_dict": weights, "trained": trained}, path)
    return path


def _work(config: VoiceConfig) -> None:
    path = export_voice(config)
    print(
        f"{path}: {path.stat().st_size / 1e6:.1f} MB. Hear it: python -m babble.generate --seconds 60 --out babble.wav"
    )


def main() -> None:
    """Run `python -m babble.voice`."""
    run_command(VoiceConfig, _work, "python -m babble.voice", positional="run")


if __name__ == "__main__":
    main()
