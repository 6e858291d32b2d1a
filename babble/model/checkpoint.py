"""Checkpoint files -> networks.

checkpoint = load_checkpoint(Path("runs/NAME/checkpoints/best.ckpt"))
model = build_model(checkpoint)
small = compress_weights(checkpoint["state_dict"])
"""

import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from babble.codec.frames import Mode, get_mode
from babble.model.babbler import Babbler
from babble.model.config import DeviceName, ModelConfig

_OTHER_VERSION = (
    "the checkpoint was not written by this version of babble; use the version that trained it, or train again"
)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Return the content of a checkpoint file.

    Raises:
        ValueError: the file is damaged, or not a checkpoint.
    """
    try:
        # A checkpoint is a zip file. torch does not verify its checksums, so a changed byte would go unnoticed.
        with zipfile.ZipFile(path) as checkpoint:
            damaged = checkpoint.testzip()
        loaded: dict[str, Any] = _restore_weights(torch.load(path, map_location="cpu", weights_only=True))
    except Exception as error:  # By the kind of damage, torch raises RuntimeError, EOFError, UnpicklingError, KeyError.
        reason = [*str(error).splitlines(), "empty"][0]
        raise ValueError(f"{path} is damaged, or not a checkpoint: {reason}") from None
    if damaged:
        raise ValueError(f"{path} is damaged: wrong checksum of its {damaged}")
    return loaded


def read_mode(path: Path) -> Mode:
    """Return the mode of a checkpoint's network without reading its weights, in a hundredth of a second.

    Raises:
        ValueError: the file is damaged, or not a checkpoint.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        return get_mode(content["hyper_parameters"]["mode"])
    except Exception as error:  # As in `load_checkpoint`.
        raise ValueError(f"{path} is damaged, or not a checkpoint: {error}") from None


def compress_weights(state_dict: dict[str, Tensor]) -> dict[str, Any]:
    """Return the weights of a network at a quarter of their size; `load_checkpoint` restores them.

    Each row of a matrix is rounded to 255 steps up to its largest absolute value, which changes the bits per frame of
    the bundled voice by 0.005. Vectors are kept in half precision.
    """
    compressed: dict[str, Any] = {}
    for name, value in state_dict.items():
        if not name.startswith("model."):
            continue
        compressed[name] = value.half()
        if value.dim() > 1:
            scale = value.float().abs().amax(dim=-1, keepdim=True).clamp_min(torch.finfo().tiny) / 127
            compressed[name] = {"steps": (value / scale).round().to(torch.int8), "scale": scale}
    return compressed


def _restore_weights(content: Any) -> Any:
    """Return the content of a checkpoint with the matrices that `compress_weights` rounded."""
    if not isinstance(content, dict):
        return content
    if content.keys() == {"steps", "scale"}:
        return content["steps"] * content["scale"]
    return {key: _restore_weights(value) for key, value in content.items()}


def build_model(checkpoint: dict[str, Any], device: DeviceName = "cpu") -> Babbler:
    """Return the network of a checkpoint with its weights, in evaluation mode.

    Args:
        checkpoint: content of a checkpoint, as `load_checkpoint` returns it.
        device: where it computes.

    Raises:
        ValueError: it was not written by this version of babble, or there is no such device.
    """
    if device == "gpu" and not torch.cuda.is_available():
        raise ValueError("--device gpu: PyTorch finds no GPU on this machine. Use --device cpu.")
    try:
        settings = checkpoint["hyper_parameters"]
        model = Babbler(ModelConfig(**settings["model"]), get_mode(settings["mode"]))
        weights = {
            name.removeprefix("model."): value
            for name, value in checkpoint["state_dict"].items()
            if name.startswith("model.")
        }
    except (KeyError, TypeError) as error:
        raise ValueError(f"{_OTHER_VERSION} ({error})") from None
    shapes, expected = ({name: w.shape for name, w in some.items()} for some in (weights, model.state_dict()))
    different = sorted(name for name in shapes | expected if shapes.get(name) != expected.get(name))
    if different:
        raise ValueError(f"{_OTHER_VERSION} ({len(different)} weights differ in name or shape, such as {different[0]})")
    model.load_state_dict(weights)
    model.bypassed = frozenset(checkpoint.get("bypassed_layers", ()))
    return model.eval().to("cuda" if device == "gpu" else "cpu")
