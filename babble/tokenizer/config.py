"""The settings of `babble tokens`. No torch."""

from dataclasses import dataclass, field, fields
from pathlib import Path

from babble.codec.frames import TOKENS

# The settings of the training of a tokenizer.
OF_TRAINING = ("clusters", "change_cost", "encoder", "seed")


@dataclass(frozen=True)
class EncoderConfig:
    """Training of the encoder.

    Attributes:
        units: Hidden units per layer and direction.
        targets: Clusters of the voice's hidden states that it learns to predict.
        steps: Optimizer steps, each of 16 windows of 256 frames.
    """

    units: int = 192
    targets: int = 200
    steps: int = 1400

    def __post_init__(self) -> None:
        """Validate sizes."""
        for key in ("units", "targets", "steps"):
            if getattr(self, key) < 1:
                raise ValueError(f"encoder.{key}={getattr(self, key)}: must be at least 1.")


@dataclass(frozen=True)
class TokensConfig:
    """Find tokens of speech without text.

    Attributes:
        shards: folder of shards.
        voice: run folder or checkpoint of a network that was trained on these shards, or on others of their mode.
        tokenizer: folder of an existing tokenizer, used instead of training one: shards of tokens, or a voice with
            tokens.
        out: folder for the tokens.
        clusters: number of different tokens, at most 512.
        change_cost: penalty for a change of token between two frames, relative to the mean squared distance of
            features from their cluster: a higher value gives fewer, longer tokens.
        encoder: size and training of the encoder.
        threads: CPU threads. On a busy machine, more than one is slower.
        seed: random seed.
    """

    shards: Path | None = None
    voice: Path | None = None
    tokenizer: Path | None = None
    out: Path | None = None
    clusters: int = 500
    change_cost: float = 0.6
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    threads: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        """Validate the settings."""
        if self.shards is None or self.out is None or (self.voice is None) == (self.tokenizer is None):
            raise ValueError(
                "name shards, a run trained on them or a tokenizer, and where to write: --shards shards/NAME --voice "
                "runs/NAME --out shards/NAME-tokens"
            )
        if self.tokenizer:
            for setting in fields(self):
                default = EncoderConfig() if setting.name == "encoder" else setting.default
                if setting.name in OF_TRAINING and getattr(self, setting.name) != default:
                    raise ValueError(
                        f"--{setting.name.replace('_', '-')} has no effect with --tokenizer. Remove the flag."
                    )
        if not 2 <= self.clusters <= TOKENS.levels[0]:
            raise ValueError(f"--clusters {self.clusters}: must be from 2 to {TOKENS.levels[0]}.")
        for key, least in (("change_cost", 0), ("threads", 1), ("seed", 0)):
            if getattr(self, key) < least:
                raise ValueError(f"--{key.replace('_', '-')} {getattr(self, key)}: must be at least {least}.")
