"""Export a run's weights as a voice: one small checkpoint for `babble generate` and `babble evaluate`.

    babble export runs/NAME --out voices/NAME
    babble generate voices/NAME --seconds 60 --out babble.wav

Writes OUT/checkpoints/best.ckpt: the weights of a checkpoint in a quarter of their size, the network's settings, the
Codec 2 mode and the training settings. It contains no speech and no paths. The bundled voice, which generates if no run
is named, was written with `--out babble/pretrained`.
"""

import shlex
import shutil
from dataclasses import dataclass
from pathlib import Path

from babble.cli import run_command
from babble.codec.frames import TOKENS
from babble.files import replacing
from babble.run_folder import RunFolder, locate_checkpoint

# The sections of config.yaml that say how the weights were trained, and not where.
TRAINING_SECTIONS = ("model", "optim", "unfreezing", "stop")


@dataclass(frozen=True)
class ExportConfig:
    """Export a run's weights as a voice.

    Attributes:
        run: run folder, runs/NAME.
        checkpoint: "best", "last", "stage-N", or the path of a checkpoint file.
        out: folder to write to.
    """

    run: Path | None = None
    checkpoint: str = "best"
    out: Path | None = None

    def __post_init__(self) -> None:
        """Validate that both are named."""
        if self.run is None or self.out is None:
            raise ValueError("name the run and where to write: babble export runs/NAME --out voices/NAME")


def export_voice(config: ExportConfig) -> Path:
    """Write the voice and return the path of its checkpoint.

    Raises:
        FileNotFoundError, ValueError: an unusable run or checkpoint, or `out` is itself a run.
    """
    # Imported here: torch takes seconds, which --help and a refused setting need not wait for.
    import torch

    from babble.model.checkpoint import build_model, compress_weights, load_checkpoint

    assert config.run is not None
    assert config.out is not None
    if RunFolder(config.out).config.is_file():
        raise ValueError(f"--out {config.out} is a run, whose best.ckpt would be replaced: name another folder.")
    run, checkpoint_path = locate_checkpoint(config.run, config.checkpoint)
    checkpoint = load_checkpoint(checkpoint_path)
    build_model(checkpoint)
    kept = {key: checkpoint[key] for key in ("hyper_parameters", "bypassed_layers", "epoch", "global_step")}
    weights = compress_weights(checkpoint["state_dict"])
    trained = {key: value for key, value in run.read_config().items() if key in TRAINING_SECTIONS}
    path = RunFolder(config.out).checkpoint("best")
    if run.tokens.is_file():
        with replacing(RunFolder(config.out).tokens) as temporary:
            shutil.copyfile(run.tokens, temporary)
    with replacing(path) as temporary:
        torch.save({**kept, "state_dict": weights, "trained": trained}, temporary)
    return path


def _run(config: ExportConfig) -> None:
    # Imported here, as above.
    from babble.model.checkpoint import read_mode

    path = export_voice(config)
    size = f"{path}: {path.stat().st_size / 1e6:.1f} MB."
    if read_mode(path) == TOKENS:
        print(f"{size} It has no sound: a network over frames receives its tokens.")
    else:
        command = shlex.join(["babble", "generate", str(config.out), "--seconds", "60"])
        print(f"{size} Listen: {command}")


def main() -> None:
    """Run `babble export`."""
    run_command(ExportConfig, _run, "babble export", positional="run")


if __name__ == "__main__":
    main()
