"""Checkpoint files -> networks: the one place that reads what a training saved.

checkpoint = load_checkpoint(path)
model = build_model(checkpoint)
"""

import zipfile
from pathlib import Path
from typing import Any

import torch

from babble.codec.frames import get_mode
from babble.model.babbler import Babbler, ModelConfig


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Return the checkpoint in a file.

    Raises:
        ValueError: the file is damaged or no checkpoint.
    """
    try:
        # A checkpoint is a zip, whose sums torch does not look at: a byte of the weights may have changed.
        with zipfile.ZipFile(path) as checkpoint:
            damaged = checkpoint.testzip()
        loaded: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises RuntimeError, EOFError, UnpicklingError, KeyError, by the damage
        raise ValueError(f"{path} is no checkpoint, or damaged: {[*str(error).splitlines(), 'empty'][0]}") from None
    if damaged:
        raise ValueError(f"{path} is no checkpoint, or damaged: the check sum of its {damaged} is wrong")
    return loaded


def build_model(checkpoint: dict[str, Any]) -> Babbler:
    """Return the network of a checkpoint with its weights, ready to run free.

    Args:
        checkpoint: what `torch.load` gave of a file that a training saved.

    Raises:
        ValueError: a checkpoint that is not babble's.
    """
    try:
        settings = checkpoint["hyper_parameters"]
        model = Babbler(ModelConfig(**settings["model"]), get_mode(settings["mode"]))
        weights = {
            name.removeprefix("model."): value
            for name, value in checkpoint["state_dict"].items()
            if name.startswith("model.")
        }
        model.load_state_dict(weights)
    except (KeyError, TypeError, RuntimeError) as error:
        raise ValueError(f"the checkpoint is not one that this babble trained: {error}") from None
    model.bypassed = frozenset(checkpoint.get("bypassed_layers", ()))
    return model.eval()
