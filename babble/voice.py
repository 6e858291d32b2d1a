"""Export a run's weights as a voice: one small checkpoint for `babble.generate` and `babble.evaluate`.

    python -m babble.voice runs/NAME --out voices/NAME
    python -m babble.generate voices/NAME --seconds 60 --out babble.wav

Writes OUT/checkpoints/best.ckpt: the weights of a checkpoint in half precision, the network's settings, the Codec 2
mode and the training settings. It contains no speech and no paths. The default --out replaces the bundled voice, which
generates if no run is named.
"""

import shlex
from dataclasses import dataclass
from pathlib import Path

import torch

from babble.cli import run_command
from babble.files import replacing
from babble.model.checkpoint import build_model, load_checkpoint
from babble.run_folder import PRETRAINED, RunFolder, locate_checkpoint

# The sections of config.yaml that say how the weights were trained, and not where.
TRAINING_SECTIONS = ("model", "optim", "unfreezing", "stop")


@dataclass(frozen=True)
class VoiceConfig:
    """Export a run's weights as a voice.

    Attributes:
        run: run folder, runs/NAME.
        checkpoint: "best", "last", "stage-N", or the path of a checkpoint file.
        out: folder to write to; by default that of the bundled voice.
    """

    run: Path | None = None
    checkpoint: str = "best"
    out: Path = PRETRAINED

    def __post_init__(self) -> None:
        """Validate that a run is named."""
        if self.run is None:
            raise ValueError("name the run to export: python -m babble.voice runs/NAME")


def export_voice(config: VoiceConfig) -> Path:
    """Write the voice and return the path of its checkpoint.

    Raises:
        FileNotFoundError, ValueError: an unusable run or checkpoint.
    """
    assert config.run is not None
    run, checkpoint_path = locate_checkpoint(config.run, config.checkpoint)
    checkpoint = load_checkpoint(checkpoint_path)
    build_model(checkpoint)
    kept = {key: checkpoint[key] for key in ("hyper_parameters", "bypassed_layers", "epoch", "global_step")}
    weights = {name: value.half() for name, value in checkpoint["state_dict"].items() if name.startswith("model.")}
    trained = {key: value for key, value in run.read_config().items() if key in TRAINING_SECTIONS}
    path = RunFolder(config.out).checkpoint("best")
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        torch.save({**kept, "state_dict": weights, "trained": trained}, temporary)
    return path


def _run(config: VoiceConfig) -> None:
    path = export_voice(config)
    command = shlex.join(["python", "-m", "babble.generate", str(config.out), "--seconds", "60"])
    print(f"{path}: {path.stat().st_size / 1e6:.1f} MB. Listen: {command}")


def main() -> None:
    """Run `python -m babble.voice`."""
    run_command(VoiceConfig, _run, "python -m babble.voice", positional="run")


if __name__ == "__main__":
    main()
