"""The settings of the training data. No torch."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

# Windows overlap as in 2017: ten of them share a frame.
HOPS_PER_WINDOW = 10


@dataclass(frozen=True)
class DataConfig:
    """Dataset and windowing settings.

    Attributes:
        shards: Folder of shards, written by `babble preprocess`.
        reading: windows: shuffled windows, each from a fresh recurrent state, as in 2017. streams: contiguous speech,
            the state carried from chunk to chunk (truncated back-propagation through time).
        shifted: Whether the training also reads the recordings that were encoded again, from fractions of a frame
            earlier and at other speeds (`--shifts` and `--speeds` of `babble preprocess`).
        window_frames: Length of a window, or of a stream's chunk; 200 frames are 8 s in mode 1300.
        hop_frames: Distance between the starts of two windows; a tenth of their length if omitted. Only for windows.
        batch_size: Windows or parallel streams per step, on each process.
        windows_per_epoch: Windows or chunks per epoch, over all processes; one pass over all of them if omitted. An
            epoch continues where the previous one stopped, so small epochs leave nothing out.
        holding: memory: each process holds the training split, 46 MB for 16 hours, 550 MB if they are encoded twelve
            times. mapped: all processes of a machine share it, unpacked into a file next to the shards. shards: it is
            read from the shards as it is needed, for corpora of thousands of hours.
        verify: start: compare the hash of every shard with the manifest at each start, 0.05 s for 16 hours. never: only
            its size, for corpora of thousands of hours.
        shuffle_shards: Number of shards whose windows are shuffled together, 8 if omitted; for windows from shards.
        tokens: Folder of the tokens of these shards, written by `babble tokens`, for a network that receives them.
    """

    shards: Path | None = None
    reading: Literal["windows", "streams"] = "windows"
    shifted: bool = True
    window_frames: int = 200
    hop_frames: int | None = None
    batch_size: int = 64
    windows_per_epoch: int | None = None
    holding: Literal["memory", "mapped", "shards"] = "memory"
    shuffle_shards: int | None = None
    verify: Literal["start", "never"] = "start"
    tokens: Path | None = None

    def __post_init__(self) -> None:
        """Validate sizes; reject settings without effect."""
        for key in ("window_frames", "hop_frames", "batch_size", "windows_per_epoch", "shuffle_shards"):
            value = getattr(self, key)
            if value is not None and value < 1:
                raise ValueError(f"data.{key}={value}: must be at least 1.")
        if self.shuffle_shards is not None and (self.reading, self.holding) != ("windows", "shards"):
            raise ValueError("data.shuffle_shards only has an effect with data.reading=windows, data.holding=shards.")
        if self.tokens and self.holding != "memory":
            raise ValueError(f"data.tokens needs data.holding=memory, not {self.holding}.")
        if self.reading == "streams" and self.hop_frames is not None:
            raise ValueError("data.hop_frames has no effect with data.reading=streams: chunks follow one another.")

    @property
    def frames_between_windows(self) -> int:
        """Distance between the starts of two windows."""
        return self.hop_frames or max(1, self.window_frames // HOPS_PER_WINDOW)
