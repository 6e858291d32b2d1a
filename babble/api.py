"""babble from Python: a voice generates speech, recordings become frames, and frames become sound.

    voice = babble.load()
    speech = voice.generate(seconds=10, temperature=0.9, prompt="a.mp3", seed=1)
    speech.save("out.wav")
    frames = babble.encode("chapter.mp3")
    voice.bits_per_frame(frames)

Everything here is also in the package itself, which imports this module, and so torch, when it is first used.
"""

import base64
import io
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from babble.codec.codec2 import Decoder, decode_frames, encode_pcm, write_c2
from babble.codec.frames import SAMPLE_RATE_HZ, Mode, check_levels, get_mode, pack_packets, unpack_packets
from babble.codec.token_sequences import add_context
from babble.generation.free_run import FreeRun, choose_sampling, one_thread
from babble.generation.output import write_wav
from babble.generation.prompts import find_prompt, read_frames
from babble.generation.token_run import check_token_temperature, load_token_level
from babble.model.babbler import Babbler
from babble.model.checkpoint import build_model, load_checkpoint
from babble.model.likelihood import name_losses, sum_losses
from babble.run_folder import PRETRAINED, RunFolder, locate_checkpoint

AnyPath = str | os.PathLike[str]
DEFAULT_MODE = "1300"


@dataclass(frozen=True)
class Speech:
    """Generated speech, or a block of it.

    In a notebook it is shown as a player and a picture of pitch, energy and spectrum.

    Attributes:
        frames: levels (T, F), without the prompt.
        pcm: the decoded frames, int16 (T * pcm_per_frame,).
        mode: the Codec 2 mode of the frames.
        title: what it is, in one line.
    """

    frames: np.ndarray = field(repr=False)
    pcm: np.ndarray = field(repr=False)
    mode: Mode = field(repr=False)
    title: str

    @property
    def rate_hz(self) -> int:
        """Samples per second of `pcm`: 8000."""
        return SAMPLE_RATE_HZ

    @property
    def seconds(self) -> float:
        """Its length."""
        return len(self.pcm) / SAMPLE_RATE_HZ

    def save(self, path: AnyPath) -> None:
        """Write a WAV file, or with the suffix .c2 the frames, which `c2dec` plays.

        Raises:
            ValueError: another suffix.
        """
        path = Path(path)
        if path.suffix not in (".wav", ".c2"):
            raise ValueError(f"{path}: the name must end in .wav or .c2.")
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".wav":
            write_wav(path, self.pcm)
        else:
            write_c2(path, self.frames, self.mode)

    def _repr_html_(self) -> str:
        from babble.reporting.plots.figures import write_png
        from babble.reporting.plots.speech import plot_speech

        wav, picture = io.BytesIO(), io.BytesIO()
        write_wav(wav, self.pcm)
        write_png(plot_speech(self.frames, self.mode, self.pcm, self.title), picture)
        sound, image = (base64.b64encode(file.getvalue()).decode() for file in (wav, picture))
        return (
            f'<audio controls src="data:audio/wav;base64,{sound}"></audio><br>'
            f'<img style="width: 100%" alt="Pitch, energy and spectrum" src="data:image/png;base64,{image}">'
        )


class Voice:
    """A trained network that generates speech; `babble.load` opens one.

    Attributes:
        model: the network.
        run: where it comes from.
        tokens: the level above the frames; None if it has none.
    """

    def __init__(self, model: Babbler, run: RunFolder) -> None:
        self.model, self.run = model, run
        self.tokens = load_token_level(run, model)

    def __repr__(self) -> str:
        return f"<babble.Voice: {self.name}, Codec 2 mode {self.mode.name}>"

    @property
    def name(self) -> str:
        """The name of its run."""
        return "bundled voice" if self.run.path == PRETRAINED else self.run.path.name

    @property
    def mode(self) -> Mode:
        """The Codec 2 mode of its frames."""
        return self.model.mode

    def generate(
        self,
        seconds: float = 10.0,
        *,
        prompt: AnyPath | np.ndarray | Speech | None = None,
        temperature: str | float | None = None,
        top_p: str | float | None = None,
        min_p: str | float | None = None,
        token_temperature: float | None = None,
        seed: int = 0,
    ) -> Speech:
        """Return speech that continues a prompt.

        Args:
            seconds: length, at least one frame, and finite.
            prompt: what it continues: the path of a recording, frames (T, F), other speech, or a prompt as `babble
                generate --prompt` takes it; by default the first prompt that the run saved, else a second of silence.
            temperature: below 1 sharpens, above 1 flattens the distribution; 1 by default. One number for all fields,
                or by group or field: "pitch=0.7,lsp=0.9". Needs a head with a likelihood, as do top_p and min_p.
            top_p: sample only from the most probable levels of a field that together have this probability.
            min_p: sample only from levels at least this probable, relative to the most probable one.
            token_temperature: temperature of the tokens, for a voice with tokens; 0.7 by default. `temperature` applies
                to the frames.
            seed: random seed; the same one gives the same frames.

        Raises:
            FileNotFoundError, ValueError: an unusable prompt or setting.
        """
        num_frames = round(seconds * self.mode.frames_per_second) if math.isfinite(seconds) else 0
        if num_frames < 1:
            raise ValueError(
                f"seconds={seconds}: must be at least {self.mode.frame_ms / 1000:g}, one frame, and finite. `stream` "
                "generates without end."
            )
        blocks, num_made = [], 0
        settings = {"temperature": temperature, "top_p": top_p, "min_p": min_p}
        for block in self.stream(prompt=prompt, **settings, token_temperature=token_temperature, seed=seed):
            blocks.append(block)
            num_made += len(block.frames)
            if num_made >= num_frames:
                break
        frames = np.concatenate([block.frames for block in blocks])[:num_frames]
        pcm = np.concatenate([block.pcm for block in blocks])[: num_frames * self.mode.pcm_per_frame]
        return Speech(frames, pcm, self.mode, blocks[0].title)

    def stream(
        self,
        *,
        prompt: AnyPath | np.ndarray | Speech | None = None,
        temperature: str | float | None = None,
        top_p: str | float | None = None,
        min_p: str | float | None = None,
        token_temperature: float | None = None,
        seed: int = 0,
    ) -> Iterator[Speech]:
        """Yield blocks of one or two seconds without end; the arguments are those of `generate`."""
        sampling = choose_sampling(self.model, temperature, top_p, min_p)
        frames, origin = self._read_prompt(prompt, seed)
        token_temperature = check_token_temperature(token_temperature, self.model)
        free_run = FreeRun(self.model, frames[None], sampling, seed, self.tokens, token_temperature)
        return self._iterate(free_run, frames, origin)

    def _iterate(self, free_run: FreeRun, prompt_frames: np.ndarray, origin: str) -> Iterator[Speech]:
        decoder = Decoder(self.mode)
        # The decoder's state too continues the prompt.
        decoder.decode(pack_packets(prompt_frames, self.mode))
        title = f"{self.name}, after {origin}"
        while True:
            with one_thread():
                (frames,) = free_run.make_block()
            yield Speech(frames, decoder.decode(pack_packets(frames, self.mode)), self.mode, title)

    def _read_prompt(self, prompt: AnyPath | np.ndarray | Speech | None, seed: int) -> tuple[np.ndarray, str]:
        if isinstance(prompt, Speech):
            prompt = prompt.frames
        if isinstance(prompt, np.ndarray):
            check_levels(prompt, self.mode, "prompt")
            if not len(prompt):
                raise ValueError("prompt: no frames to continue. Without a prompt, give None or 'silence'.")
            return prompt, f"a prompt of {len(prompt)} frames"
        found = find_prompt(os.fspath(prompt) if prompt else None, self.run, self.mode, seed=seed)
        return found.frames, found.origin

    def bits_per_frame(self, frames: np.ndarray) -> float:
        """Return the mean of -log2 p(frame | all frames before it) over all frames (T, F) but the first.

        Of a voice with tokens, p is also given the frame's token, which itself is not counted.

        Raises:
            ValueError: less than two frames, frames of another mode, or a network whose head has no likelihood.
        """
        check_levels(frames, self.mode, "frames")
        if len(frames) < 2:
            raise ValueError(f"{len(frames)} frames: at least two are needed, as the first is not predicted.")
        if not self.model.head.has_likelihood:
            raise ValueError(f"the {self.model.config.head} head has no likelihood, and therefore no bits per frame.")
        if self.tokens:
            frames = add_context(frames, self.tokens.tokenizer.find_sequence(frames))
        sums = sum_losses(self.model, torch.from_numpy(frames.astype(np.int64))[None])
        return name_losses(sums, self.model, self.mode)["bits_per_frame"]


def load(run: AnyPath | None = None, checkpoint: str = "best") -> Voice:
    """Return a voice.

    Args:
        run: run folder, runs/NAME, an exported voice, or a checkpoint file; the bundled voice by default.
        checkpoint: "best", "last", "stage-N", or the path of a checkpoint file.

    Raises:
        FileNotFoundError, ValueError: an unusable run or checkpoint.
    """
    folder, path = locate_checkpoint(Path(run) if run else PRETRAINED, checkpoint)
    return Voice(build_model(load_checkpoint(path)), folder)


def encode(recording: AnyPath | np.ndarray, mode: str = DEFAULT_MODE) -> np.ndarray:
    """Return a recording as frames (T, F).

    Args:
        recording: path of an audio file of any format, .c2 and .c2cb included, or PCM: int16 (N,) at 8 kHz.
        mode: the Codec 2 mode.

    Raises:
        FileNotFoundError, ValueError: no audio there, PCM of another shape or type, .c2 of another mode.
    """
    if isinstance(recording, np.ndarray):
        return unpack_packets(encode_pcm(recording, get_mode(mode)), get_mode(mode))
    return read_frames(Path(recording), get_mode(mode))


def decode(frames: np.ndarray, mode: str = DEFAULT_MODE) -> np.ndarray:
    """Return frames (T, F) as PCM, int16 (T * pcm_per_frame,) at 8 kHz.

    Raises:
        ValueError: frames of another mode.
    """
    return decode_frames(frames, get_mode(mode))
