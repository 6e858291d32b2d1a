"""One listener: a voice that generates short blocks without end, by settings that may change at any time.

    session = Session(Voices(PRETRAINED, Path("runs")), seed=0)
    block = session.next_block()            # 0.12 s of pcm, and what a display shows of it
    session.change(Settings(temperature="0.8", what_if="pitch=scale:1.2"))
    session.continue_from(prompt)

A change acts on the next block. The last minute is kept, as frames and as sound.
"""

import contextlib
import io
import json
import math
import threading
import zipfile
from collections import deque
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from babble.codec.codec2 import Decoder, c2_header, silence_frame
from babble.codec.edits import Edit, apply_edits, parse_edits
from babble.codec.failures import Guard
from babble.codec.frames import (
    SAMPLE_RATE_HZ,
    TOKENS,
    Mode,
    check_levels,
    energy_db,
    is_voiced,
    pack_packets,
    pitch_hz,
)
from babble.generation.free_run import FreeRun, choose_sampling
from babble.generation.output import write_wav
from babble.generation.prompts import PROMPT_FRAMES, Prompt, find_prompt, open_shards
from babble.generation.token_run import TOKEN_TEMPERATURE, TokenLevel, load_token_level
from babble.model.babbler import Babbler
from babble.model.checkpoint import build_model, load_checkpoint, read_mode
from babble.run_folder import PRETRAINED, RunFolder, locate_checkpoint

BLOCK_SECONDS = 0.12
KEPT_SECONDS = 60
# A longer prompt is cut to its end.
MAX_PROMPT_SECONDS = 30


@dataclass(frozen=True)
class Settings:
    """What a listener may change while it plays.

    Attributes:
        temperature: as `babble generate` takes it, and so are top_p, min_p and what_if.
        top_p: see babble generate.
        min_p: see babble generate.
        what_if: edits of what is played; the network's input is not edited. Empty: none.
        token_temperature: temperature of the tokens, for a voice with tokens; `temperature` applies to the frames.
        guard: whether silence, a held tone, a pulse or a loop restarts the voice from its prompt.
    """

    temperature: str = "1"
    top_p: str = "1"
    min_p: str = "0"
    what_if: str = ""
    token_temperature: float = TOKEN_TEMPERATURE
    guard: bool = True


class Voices:
    """The voices that a listener can choose: one that is named first, the bundled one, and all finished runs.

    A voice has the name of its folder; if another one has that name already, its path. Runs over tokens are left out.

    Args:
        first: run folder or checkpoint.
        runs: folder of runs; it may not exist.
    """

    def __init__(self, first: Path, runs: Path) -> None:
        finished = [path for path in sorted(runs.glob("*/checkpoints/best.ckpt")) if not _is_over_tokens(path)]
        self._paths: dict[str, Path] = {}
        for path in (first, PRETRAINED, *(path.parent.parent for path in finished)):
            if path.resolve() not in [known.resolve() for known in self._paths.values()]:
                name = "bundled voice" if path == PRETRAINED else path.resolve().name
                self._paths[str(path) if name in self._paths else name] = path
        self._loaded: dict[str, tuple[Babbler, RunFolder, TokenLevel | None]] = {}
        self._lock = threading.Lock()

    @property
    def names(self) -> list[str]:
        """Their names; the first one plays first."""
        return list(self._paths)

    def load(self, name: str) -> tuple[Babbler, RunFolder, TokenLevel | None]:
        """Return a network, its run, and the level above its frames; it is read once.

        Raises:
            ValueError: there is no such voice, or its checkpoint can't be used.
        """
        with self._lock:
            if name not in self._paths:
                raise ValueError(f"there is no voice {name!r}; there are {', '.join(self._paths)}.")
            if name not in self._loaded:
                run, path = locate_checkpoint(self._paths[name])
                model = build_model(load_checkpoint(path))
                self._loaded[name] = model, run, load_token_level(run, model)
            return self._loaded[name]


@dataclass(frozen=True)
class Block:
    """A short piece of sound and what a display shows of it.

    Attributes:
        pcm: int16 (N,) at 8 kHz.
        pitch_hz: of each frame as it is played, 0 if unvoiced; empty in modes without it.
        energy_db: of each frame; empty in modes without it.
        alarms: kinds of failures that the guard found in it.
    """

    pcm: np.ndarray
    pitch_hz: list[float]
    energy_db: list[float]
    alarms: list[str]


class Session:
    """Generates blocks for one listener. Its methods may be called from several threads.

    Args:
        voices: to choose from; the first one plays.
        seed: random seed of the sampling.
        settings: to start with.

    Raises:
        ValueError: the voice or the settings can't be used.
    """

    def __init__(self, voices: Voices, seed: int = 0, settings: Settings | None = None) -> None:
        self.voices, self.settings = voices, settings or Settings()
        self._seed = seed
        self._lock = threading.Lock()
        self._prompt: Prompt | None = None
        self._kept: deque[tuple[np.ndarray, np.ndarray]] = deque()
        self._guard: Guard
        self._decoder: Decoder
        self.choose_voice(voices.names[0])

    @property
    def mode(self) -> Mode:
        """The Codec 2 mode of the voice."""
        return self._model.mode

    @property
    def block_seconds(self) -> float:
        """Length of a block."""
        return self._block_frames / self.mode.frames_per_second

    def describe(self) -> dict[str, Any]:
        """Return what a display needs to know about the voice: its name, groups of fields, possible edits, prompt."""
        possible = {}
        for edit in ("pitch=scale:1", "energy=+0dB", "voicing=off", "lsp=scale:1"):
            try:
                possible[edit.partition("=")[0]] = bool(parse_edits(edit, self.mode))
            except ValueError:
                possible[edit.partition("=")[0]] = False
        assert self._prompt
        return {
            "voice": self.voice,
            "voices": self.voices.names,
            # Where its slider starts; without tokens there is none.
            "token_temperature": TOKEN_TEMPERATURE if self._tokens else None,
            "groups": self.mode.groups if self._model.head.has_likelihood else [],
            "edits": [group for group, is_possible in possible.items() if is_possible],
            "mode": self.mode.name,
            "prompt": self._prompt.origin,
            "prompts": self.prompts,
            "rate_hz": SAMPLE_RATE_HZ,
            "block_seconds": self.block_seconds,
        }

    def choose_voice(self, name: str) -> None:
        """Play another voice, which continues the last seconds if it has the same mode, else silence.

        Raises:
            ValueError: as `Voices.load`.
        """
        model, run, tokens = self.voices.load(name)
        with self._lock:
            is_same_mode = bool(self._kept) and self.mode == model.mode
            self.voice, self._model, self._run, self._tokens = name, model, run, tokens
            self.prompts = ["random", "silence"] if _has_held_out(run, model.mode) else ["silence"]
            self._block_frames = max(1, round(BLOCK_SECONDS * model.mode.frames_per_second))
            if is_same_mode:
                # As they were sampled, before edits.
                heard = np.concatenate([frames for frames, _ in self._kept])[-PROMPT_FRAMES:]
                prompt = Prompt(heard, "what was played before")
            else:
                self._kept.clear()
                prompt = find_prompt(None, run, model.mode)
            try:
                self._read(self.settings)
            except ValueError:  # They name groups that only the other voice has.
                self.settings = Settings(guard=self.settings.guard)
            self._start(prompt)

    def change(self, settings: Settings) -> None:
        """Use other settings from the next block on.

        Raises:
            ValueError: the voice can't use them; the old ones stay.
        """
        with self._lock:
            edits, sampling = self._read(settings)
            self.settings, self._edits = settings, edits
            self._free_run.set_sampling(sampling)
            self._free_run.set_token_temperature(settings.token_temperature)

    def continue_from(self, prompt: Prompt) -> None:
        """Continue a prompt from the next block on; of a long one, its end.

        Raises:
            ValueError: the prompt is empty, or of the mode of another voice than the one that plays now.
        """
        if not len(prompt.frames):
            raise ValueError(f"{prompt.origin}: no speech to continue; it is shorter than a frame.")
        with self._lock:
            try:
                # The voice may have changed while the prompt was read.
                check_levels(prompt.frames, self.mode, prompt.origin)
            except ValueError:
                raise ValueError(f"{prompt.origin} was read for another voice: choose it again.") from None
            last = MAX_PROMPT_SECONDS * self.mode.frames_per_second
            self._start(Prompt(prompt.frames[-last:], prompt.origin))

    def find_prompt(self, name: str) -> Prompt:
        """Return a prompt by name: "silence", "random" of the run's held-out speech, "samples:1".

        Raises:
            FileNotFoundError, ValueError: the run has no such prompt.
        """
        self._seed += 1
        return find_prompt(name, self._run, self.mode, seed=self._seed)

    def next_block(self) -> Block:
        """Return the next block of sound."""
        with self._lock:
            (frames,) = self._free_run.make_block(self._block_frames)
            played = apply_edits(frames, self._edits, self.mode) if self._edits else frames
            pcm = self._decoder.decode(pack_packets(played, self.mode))
            alarms: list[str] = [alarm.kind for alarm in self._guard.update(frames)] if self.settings.guard else []
            if alarms:
                self._free_run.start_over(0)
                self._guard = Guard(self.mode)
            self._keep(frames, pcm)
            pitch = pitch_hz(played, self.mode)
            voiced_pitch = None if pitch is None else np.where(is_voiced(played, self.mode), pitch, 0)
            return Block(pcm, _as_list(voiced_pitch), _as_list(energy_db(played, self.mode)), alarms)

    def save(self) -> bytes:
        """Return the last minute as a zip: babble.wav as it was played, babble.c2 before edits, and settings.json."""
        with self._lock:
            nothing = np.empty((0, self.mode.num_fields), self.mode.dtype), np.empty(0, np.int16)
            frames, pcm = zip(nothing, *self._kept, strict=True)
            wav, packed = io.BytesIO(), io.BytesIO()
            write_wav(wav, np.concatenate(pcm))
            settings = {"voice": self.voice, "prompt": self._prompt and self._prompt.origin, **asdict(self.settings)}
            with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
                archive.writestr("babble.wav", wav.getvalue())
                archive.writestr("babble.c2", c2_header(self.mode) + pack_packets(np.concatenate(frames), self.mode))
                archive.writestr("settings.json", json.dumps(settings, indent=2) + "\n")
            return packed.getvalue()

    def _start(self, prompt: Prompt) -> None:
        edits, sampling = self._read(self.settings)
        frames = prompt.frames if len(prompt.frames) else silence_frame(self.mode)[None]
        self._seed += 1
        temperature = self.settings.token_temperature
        self._free_run = FreeRun(self._model, frames[None], sampling, self._seed, self._tokens, temperature)
        self._prompt, self._edits = prompt, edits
        self._guard, self._decoder = Guard(self.mode), Decoder(self.mode)
        self._decoder.decode(pack_packets(frames, self.mode))

    def _read(self, settings: Settings) -> tuple[tuple[Edit, ...], Any]:
        if not 0 < settings.token_temperature < math.inf:
            raise ValueError(f"token temperature {settings.token_temperature:g}: must be above 0.")
        edits = parse_edits(settings.what_if, self.mode) if settings.what_if else ()
        has_likelihood = self._model.head.has_likelihood
        values = (settings.temperature, settings.top_p, settings.min_p) if has_likelihood else (None, None, None)
        return edits, choose_sampling(self._model, *values)

    def _keep(self, frames: np.ndarray, pcm: np.ndarray) -> None:
        self._kept.append((frames, pcm))
        while len(self._kept) * self._block_frames > KEPT_SECONDS * self.mode.frames_per_second:
            self._kept.popleft()


def _is_over_tokens(checkpoint: Path) -> bool:
    """Return whether a checkpoint's network is one over tokens, which have no sound; not if it is damaged."""
    with contextlib.suppress(ValueError):  # `load` raises it when the voice is chosen.
        return read_mode(checkpoint) == TOKENS
    return False


def _has_held_out(run: RunFolder, mode: Mode) -> bool:
    """Return whether a run's shards are still there; the bundled voice and exported ones come without."""
    try:
        open_shards(None, run, mode)
    except (ValueError, OSError):
        return False
    return True


def _as_list(values_T: np.ndarray | None) -> list[float]:
    return [] if values_T is None else np.nan_to_num(values_T).round(1).tolist()
