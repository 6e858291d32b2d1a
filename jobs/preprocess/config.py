"""The settings of `babble preprocess`."""

from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from babble.cli import config_to_dict
from babble.codec.frames import get_mode
from babble.training.wandb_run import WandbConfig
from preprocessing.split import SplitConfig

COMMAND = "babble preprocess"
# 20 MB of pcm; the object store holds a few chunks per core.
MAX_CHUNK_SECONDS = 1200


@dataclass(frozen=True)
class PreprocessConfig:
    """Encode recordings with Codec 2 and write them as shards.

    Attributes:
        sources: Files, folders and zips of recordings.
        out: Folder for the shards, outside the sources.
        mode: Codec 2 mode.
        shifts: How many times to encode each recording for training, each time from a fraction of a frame earlier,
            which changes all fields. On few hours of speech, networks trained on several encodings overfit far less;
            with thousands of hours, use 1. Encoding time grows by this factor.
        speeds: Speeds at which to encode each recording for training, each as often as `shifts` says: 1 is its own,
            1.04 raises pitch and tempo by 4 %. Like `shifts`, they reduce overfitting; with thousands of hours, use 1.
        gain_db: Gain applied to every recording before encoding, in dB, -60 to 60.
        split: Which recordings are for validation and test.
        chunk_seconds: Length of the chunks that are encoded in parallel, in seconds, 1 to 1200. Before each chunk 8
            frames are encoded and discarded as warm-up; up to 2,000 frames in modes 2400, 1400 and 1200.
        entries_per_shard: Segments of up to 1,500 frames per tar; 64 are about an hour in modes with 40 ms frames.
        max_failures: Number of bad recordings to accept; with more, the exit code is 1.
        workers: Chunks encoded at the same time; one per core by default.
        address: Ray cluster to run on, host:port or 'auto'; by default Ray is started on this machine.
        nodes: Nodes of that cluster to wait for, for at most 60 seconds.
        share: I/N, for job arrays: encode only every N-th recording starting from the I-th, counted from 0. The share
            that finishes last writes the shards.
        wandb: W&B run that shows hours, speed, failures and a histogram per field; off by default.
    """

    sources: tuple[Path, ...] = ()
    out: Path | None = None
    mode: Literal["3200", "2400", "1600", "1400", "1300", "1200", "700C"] = "1300"
    shifts: int = 4
    speeds: tuple[float, ...] = (0.96, 1.0, 1.04)
    gain_db: float = 0.0
    split: SplitConfig = field(default_factory=SplitConfig)
    chunk_seconds: int = 300
    entries_per_shard: int = 64
    max_failures: int = 0
    workers: int | None = None
    address: str | None = None
    nodes: int = 1
    share: str | None = None
    wandb: WandbConfig = field(default_factory=lambda: WandbConfig(mode="off"))

    def __post_init__(self) -> None:
        """Validate ranges; reject settings without effect."""
        get_mode(self.mode)
        if not self.sources:
            raise ValueError("--sources is missing: name the files, folders or zips of recordings.")
        if self.out is None:
            raise ValueError("--out is missing: name the folder for the shards, e.g. --out shards/NAME.")
        if not 1 <= self.chunk_seconds <= MAX_CHUNK_SECONDS:
            raise ValueError(f"--chunk-seconds {self.chunk_seconds}: must be from 1 to {MAX_CHUNK_SECONDS}.")
        if not -60 <= self.gain_db <= 60:
            raise ValueError(f"--gain-db {self.gain_db:g}: must be from -60 to 60.")
        for name, least in (("shifts", 1), ("entries_per_shard", 1), ("max_failures", 0), ("workers", 1), ("nodes", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"--{name.replace('_', '-')} {value}: must be at least {least}.")
        # 1 and 1.0 must not make different manifests.
        object.__setattr__(self, "speeds", tuple(map(float, self.speeds)))
        is_valid = all(0.8 <= speed <= 1.25 for speed in self.speeds) and len(set(self.speeds)) == len(self.speeds)
        if not is_valid or 1 not in self.speeds:
            listed = " ".join(f"{speed:g}" for speed in self.speeds)
            raise ValueError(f"--speeds {listed}: must be different numbers from 0.8 to 1.25, one of them 1.")
        if self.nodes > 1 and self.address is None:
            raise ValueError(f"--nodes {self.nodes} has no effect without --address HOST:PORT of a Ray cluster.")
        if self.wandb.mode != "off" and find_spec("wandb") is None:
            raise ValueError(f"--wandb.mode {self.wandb.mode} needs W&B: pip install -e '.[dashboard]' in the clone.")
        self.parse_share()

    def parse_share(self) -> tuple[int, int] | None:
        """Return (I, N) of --share I/N, or None without a share.

        Raises:
            ValueError: it is not of the form I/N with I below N.
        """
        if self.share is None:
            return None
        index, slash, shares = self.share.partition("/")
        if not (slash and index.isdecimal() and shares.isdecimal() and int(index) < int(shares)):
            raise ValueError(f"--share {self.share}: must be I/N with I from 0 to N - 1, e.g. 0/8.")
        return int(index), int(shares)

    @property
    def output_settings(self) -> dict[str, Any]:
        """The settings that change the bytes of the shards. One folder can't hold shards of two different settings."""
        values = config_to_dict(self)
        names = ("mode", "shifts", "speeds", "gain_db", "split", "chunk_seconds", "entries_per_shard")
        return {**{name: values[name] for name in names}, "mode": get_mode(self.mode).name}
