"""What is trained on as one array: in the memory of a process, or in a file that all processes of a machine share."""

from pathlib import Path

import numpy as np

from babble.data.shards import Manifest, Segment, hash_manifest, read_recordings
from babble.files import replacing


def read_training(folder: Path, manifest: Manifest) -> tuple[np.ndarray, list[Segment]]:
    """Return what is trained on, end to end, int16 (N, F), and its recordings as views of that array.

    These are the recordings of the training split, then the shifted ones.

    Raises:
        ValueError: as `read_recordings`; the recordings are not those of the manifest.
    """
    training = manifest.with_shifted()
    recordings = read_recordings(folder, training, "train")
    if [len(recording.frames) for recording in recordings] != training.split_lengths("train"):
        raise ValueError(
            f"{folder}: the manifest's train recordings do not match its shards: preprocess to a new folder."
        )
    no_frames = np.empty((0, manifest.mode.num_fields), np.int16)
    levels = [no_frames, *(recording.frames for recording in recordings)]
    return _view_recordings(np.concatenate(levels, dtype=np.int16, casting="unsafe"), training)


def map_training(folder: Path, manifest: Manifest) -> tuple[np.ndarray, list[Segment]]:
    """Return the same as `read_training`, from a file next to the shards that all processes of a machine share.

    The first process writes the file, two bytes per field. It belongs to this manifest and may be deleted at any time.

    Raises:
        ValueError: as `read_training`.
        OSError: the file can't be written: no permission, or the disk is full.
    """
    kind = "shifted" if manifest.shifted else "train"
    path = folder / f".{kind}-{hash_manifest(folder)[:12]}.npy"
    if not path.is_file():
        with replacing(path) as temporary, temporary.open("wb") as file:
            np.save(file, read_training(folder, manifest)[0])
    return _view_recordings(np.load(path, mmap_mode="r"), manifest.with_shifted())


def _view_recordings(frames: np.ndarray, training: Manifest) -> tuple[np.ndarray, list[Segment]]:
    ends = np.cumsum(training.split_lengths("train"))
    return frames, [
        Segment(fact["name"], fact["first_frame"], frames[end - fact["frames"] : end])
        for fact, end in zip(training.of_split("train"), ends, strict=True)
    ]
