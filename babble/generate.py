"""Seed frames + checkpoint -> babble: the network runs free, hearing only itself.

    python -m babble.generate runs/NAME --seconds 60 --seed 12:30 --temperature 0.9 --out babble.wav
    python -m babble.generate runs/NAME --seconds inf --out - | aplay -f S16_LE -r 8000

1. The seed, real speech by default, is heard once, all of it, and leaves the state it leaves.
2. From then on each frame is drawn, written, and heard by the network as the next input. State is carried, so a
   frame costs the same whether it is the first or the millionth.

Beside babble.wav lie babble.c2 (the frames: c2dec plays them), babble.png and babble.json (every choice made).
"""

import json
import math
import re
import sys
import time
import wave
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from babble.codec import Decoder, c2_header, read_c2, silence_frame
from babble.commands import CommandError, Interrupted, config_to_dict, run_command
from babble.frames import SAMPLE_RATE_HZ, Mode, pack_packets, unpack_packets
from babble.model import Babbler, model_from_checkpoint
from babble.plots import plot_speech, save_figure
from babble.run import RunFolder
from babble.shards import read_manifest, read_recordings, write_bytes
from preprocessing.audio import BadRecording, open_recording
from preprocessing.encode import encode_recording

# A seed's pcm is encoded in pieces of this many frames.
PIECE_FRAMES = 7500
# Seeds by time and by frame have this length: 8 s in mode 1300, a window of 2017.
SEED_FRAMES = 200
# Frames that are made at once and then written, to the disk or the pipe: a second or two of speech.
BLOCK_FRAMES = 50
# A picture of more than this is a smear.
PLOT_SECONDS = 60


@dataclass(frozen=True)
class GenerateConfig:
    """Let a trained network babble.

    Attributes:
        run: the run's folder, runs/NAME.
        checkpoint: "best", "last", "stage-N", or the path of a checkpoint file.
        seconds: how much to generate, the seed not counted; "inf" with `--out -` goes on until it is stopped.
        seed: what is continued: a time such as 12:30, counted through the held-out recordings in manifest order;
            "frame:18750"; "random"; "silence"; "listening:2", the run's own second listening seed; or the path of an
            audio file. The run's first listening seed by default, for which no shards are needed.
        seed_frames: length of the seed; by default all of a listening seed or an audio file, else 200 frames.
        with_seed: whether the seed opens the WAV.
        shards: the folder of shards that times and frames count through; the run's own by default.
        temperature: below 1 keeps to what is likely, above 1 dares more; 1 is what was learned. Only for heads with a
            likelihood.
        random_seed: the same one gives the same frames.
        out: where to write: NAME.wav with NAME.c2, NAME.png and NAME.json beside it; or "-" for raw pcm (8 kHz, mono,
            signed 16 bit) to standard output.
    """

    run: Path | None = None
    checkpoint: str = "best"
    seconds: float = 60.0
    seed: str = "listening:1"
    seed_frames: int | None = None
    with_seed: bool = True
    shards: Path | None = None
    temperature: float | None = None
    random_seed: int = 0
    out: str = "babble.wav"

    def __post_init__(self) -> None:
        """Refuse what nothing could obey."""
        if self.run is None:
            raise ValueError("name the run to generate from: python -m babble.generate runs/NAME")
        if not self.seconds > 0:
            raise ValueError(f"--seconds {self.seconds}: above 0 is needed.")
        if self.seed_frames is not None and self.seed_frames < 1:
            raise ValueError(f"--seed_frames {self.seed_frames}: at least 1 is needed, silence for none of it.")
        if self.temperature is not None and self.temperature <= 0:
            raise ValueError(f"--temperature {self.temperature}: above 0 is needed.")
        if math.isinf(self.seconds) and self.out != "-":
            raise ValueError("--seconds inf needs --out -: a file has to end.")
        if self.out != "-" and not self.out.endswith(".wav"):
            raise ValueError(f"--out {self.out}: a name that ends in .wav, or - for raw pcm, is needed.")


def iterate_babble(
    model: Babbler, seeds_BTF: np.ndarray, temperature: float = 1.0, random_seed: int = 0
) -> Iterator[np.ndarray]:
    """Yield the frames (B, F) that continue each seed, without end.

    Args:
        model: the network, on any device.
        seeds_BTF: B seeds of T frames each: B streams run side by side.
        temperature: see `GenerateConfig`.
        random_seed: the same one gives the same frames on the same machine.
    """
    device = next(model.parameters()).device
    generator = torch.Generator(device).manual_seed(random_seed)
    with torch.inference_mode():
        hidden_BTH, state = model(torch.from_numpy(seeds_BTF.astype(np.int64)).to(device))
        hidden_BH, step = hidden_BTH[:, -1], model.make_step()
    draw, dtype = model.typed_head.draw, model.mode.dtype
    while True:
        # A block at a time: going in and out of inference mode and of torch takes as long as a layer.
        with torch.inference_mode():
            block = []
            for _ in range(BLOCK_FRAMES):
                frames_BF = draw(hidden_BH, temperature, generator)
                block.append(frames_BF)
                hidden_BH, state = step(frames_BF, state)
            block_TBF = torch.stack(block).cpu().numpy().astype(dtype)
        yield from block_TBF


def generate_frames(
    model: Babbler, seeds_BTF: np.ndarray, num_frames: int, temperature: float = 1.0, random_seed: int = 0
) -> np.ndarray:
    """Return the frames (B, num_frames, F) that continue each seed; the arguments are those of `iterate_babble`."""
    frames = iterate_babble(model, seeds_BTF, temperature, random_seed)
    return np.stack([next(frames) for _ in range(num_frames)], axis=1)


@dataclass(frozen=True)
class Seed:
    """Frames to continue (T, F), and where they are from in words."""

    frames: np.ndarray
    origin: str


def _seconds_of(seed: str) -> float | None:
    if not re.fullmatch(r"(\d+:)?\d+:\d+(\.\d+)?", seed):
        return None
    return sum(float(part) * 60**place for place, part in enumerate(reversed(seed.split(":"))))


def find_seed(config: GenerateConfig, run: RunFolder, mode: Mode) -> Seed:
    """Return the frames that a user's `--seed` means.

    Raises:
        FileNotFoundError: no such listening seed, shards or audio file.
        ValueError: a place behind the end of the held-out recordings, a seed shorter than asked for, shards or audio of
            another kind.
    """
    seed = _read_seed(config, run, mode)
    wanted = config.seed_frames or len(seed.frames)
    if len(seed.frames) < max(1, wanted):
        raise ValueError(f"--seed {config.seed} has {len(seed.frames)} frames, but {max(1, wanted)} are needed.")
    return Seed(seed.frames[:wanted], seed.origin)


def _read_seed(config: GenerateConfig, run: RunFolder, mode: Mode) -> Seed:
    seed_frames = config.seed_frames or SEED_FRAMES
    if config.seed == "silence":
        return Seed(np.repeat(silence_frame(mode)[None], seed_frames, axis=0), "silence")
    if match := re.fullmatch(r"listening:(\d+)", config.seed):
        path = run.seeds / f"{match[1]}.c2"
        if not path.is_file():
            there = ", ".join(sorted(f"listening:{path.stem}" for path in run.seeds.glob("*.c2")))
            raise FileNotFoundError(f"{run.path} has no seed {config.seed}; it has {there or 'none'}.")
        frames, _ = read_c2(path)
        return Seed(frames, f"{config.seed} of {run.path}")
    seconds = _seconds_of(config.seed)
    frame_number = re.fullmatch(r"frame:(\d+)", config.seed)
    if config.seed == "random" or seconds is not None or frame_number:
        held_out, folder = _held_out_frames(config, run, mode)
        latest = len(held_out) - seed_frames
        if config.seed == "random":
            first = int(np.random.default_rng(config.random_seed).integers(max(1, latest + 1)))
        else:
            first = int(frame_number[1]) if frame_number else round((seconds or 0) * mode.frames_per_second)
        if not 0 <= first <= latest:
            raise ValueError(
                f"--seed {config.seed}: frame {first} and {seed_frames} frames on is behind the end of the "
                f"held-out recordings of {folder}, which have {len(held_out)} frames "
                f"({len(held_out) / mode.frames_per_second / 60:.1f} minutes)."
            )
        return Seed(held_out[first : first + seed_frames], f"held-out frame {first} of {folder}")
    path = Path(config.seed)
    if not path.is_file():
        raise FileNotFoundError(
            f"--seed {config.seed}: neither a time (12:30), frame:N, random, silence, listening:N, nor a file "
            "that exists."
        )
    return Seed(_frames_of_audio(path, mode), str(path))


def _held_out_frames(config: GenerateConfig, run: RunFolder, mode: Mode) -> tuple[np.ndarray, Path]:
    named = config.shards or run.read_config()["data"]["shards"]
    folder = Path(named)
    manifest = read_manifest(folder)
    if manifest.mode != mode:
        raise ValueError(f"{folder} is of mode {manifest.mode.name}, the run of mode {mode.name}: name other --shards.")
    recordings = [r for split in ("validation", "test") for r in read_recordings(folder, manifest, split)]
    if not recordings:
        raise ValueError(f"{folder} holds nothing held out, so no seed can be taken from it.")
    return np.concatenate([recording.frames for recording in recordings]), folder


def _frames_of_audio(path: Path, mode: Mode) -> np.ndarray:
    """Return a user's own speech as frames, made as the preprocessing job makes them."""
    if path.suffix == ".c2":
        frames, found = read_c2(path)
        if found != mode:
            raise ValueError(f"--seed {path} is of mode {found.name}, the run of mode {mode.name}.")
        return frames
    try:
        with open_recording(path) as recording:
            packets = encode_recording(recording.pcm_blocks(), mode, PIECE_FRAMES)
    except BadRecording as bad:
        raise ValueError(f"--seed {path}: {bad}") from None
    return unpack_packets(packets, mode)


def _open_bar(seconds: float) -> tqdm:
    is_endless = math.isinf(seconds)
    return tqdm(
        total=None if is_endless else seconds,
        disable=not sys.stderr.isatty(),
        bar_format="babble: {n:.0f} s" + ("" if is_endless else " of {total:.0f} s {bar} {remaining} left"),
    )


class _Writer:
    """Puts pcm where the user wants it: a WAV, or raw on standard output."""

    def __init__(self, out: str) -> None:
        self._wav: wave.Wave_write | None = None
        if out != "-":
            Path(out).parent.mkdir(parents=True, exist_ok=True)
            self._wav = wave.open(out, "wb")  # noqa: SIM115  (closed by `close`)
            self._wav.setparams((1, 2, SAMPLE_RATE_HZ, 0, "NONE", ""))

    def write(self, pcm: np.ndarray) -> None:
        data = pcm.astype("<i2").tobytes()
        if self._wav:
            self._wav.writeframes(data)
        else:
            sys.stdout.buffer.write(data)
            sys.stdout.buffer.flush()

    def close(self) -> None:
        if self._wav:
            self._wav.close()


def generate(config: GenerateConfig) -> dict[str, Any]:
    """Generate as asked, write every file, and return what the JSON says.

    Raises:
        FileNotFoundError, ValueError: a run, checkpoint, seed or setting that can't be; the message says which.
        Interrupted: stopped by Ctrl-C; what was generated until then is written.
    """
    assert config.run is not None
    run = RunFolder(config.run)
    path = run.find_checkpoint(config.checkpoint)
    checkpoint = load_checkpoint(path)
    model = model_from_checkpoint(checkpoint)
    if config.temperature is not None and not model.typed_head.has_likelihood:
        raise ValueError(
            f"--temperature {config.temperature} has no effect: the {model.config.head} head of {path} has no "
            "likelihood to draw from. Leave it away."
        )
    mode = model.mode
    seed = find_seed(config, run, mode)

    threads = torch.get_num_threads()
    # One stream is a chain of small products: a second thread only costs.
    torch.set_num_threads(1)
    writer, decoder = _Writer(config.out), Decoder(mode)
    heard = decoder.decode(pack_packets(seed.frames, mode))
    if config.with_seed:
        writer.write(heard)
    temperature = 1.0 if config.temperature is None else config.temperature
    stream = iterate_babble(model, seed.frames[None], temperature, config.random_seed)
    blocks: list[np.ndarray] = []
    total = math.inf if math.isinf(config.seconds) else max(1, round(config.seconds * mode.frames_per_second))
    started, stopped = time.monotonic(), False
    bar, made = _open_bar(total / mode.frames_per_second), 0
    try:
        while made < total:
            block = np.concatenate([next(stream) for _ in range(int(min(BLOCK_FRAMES, total - made)))])
            made += len(block)
            writer.write(decoder.decode(pack_packets(block, mode)))
            if config.out != "-":
                blocks.append(block)
            bar.update(len(block) / mode.frames_per_second)
    except KeyboardInterrupt:
        stopped = True
    finally:
        bar.close()
        writer.close()
        torch.set_num_threads(threads)
    seconds = made / mode.frames_per_second
    facts = {
        **config_to_dict(config),
        "checkpoint": str(path),
        "epoch": checkpoint.get("epoch"),
        "step": checkpoint.get("global_step"),
        "model": checkpoint["hyper_parameters"]["model"],
        "mode": mode.name,
        "seed_origin": seed.origin,
        "seed_frames": len(seed.frames),
        "temperature": config.temperature if not model.typed_head.has_likelihood else temperature,
        "frames": made,
        "generated_seconds": seconds,
        "times_real_time": round(seconds / (time.monotonic() - started), 1),
    }
    if config.out != "-" and blocks:
        _write_beside(
            Path(config.out), seed if config.with_seed else Seed(seed.frames[:0], seed.origin), blocks, mode, facts
        )
    if stopped:
        raise Interrupted(
            f"stopped after {seconds:.1f} s of babble" + ("" if config.out == "-" else f" in {config.out}.")
        )
    return facts


def _write_beside(out: Path, seed: Seed, blocks: list[np.ndarray], mode: Mode, facts: dict[str, Any]) -> None:
    frames = np.concatenate([seed.frames, *blocks])
    write_bytes(out.with_suffix(".c2"), c2_header(mode) + pack_packets(frames, mode))
    write_bytes(out.with_suffix(".json"), (json.dumps(facts, indent=2) + "\n").encode())
    shown = PLOT_SECONDS * mode.frames_per_second
    with wave.open(str(out), "rb") as file:
        pcm = np.frombuffer(file.readframes(shown * mode.pcm_per_frame), "<i2").astype(np.int16)
    figure = plot_speech(frames[:shown], mode, pcm, title=f"{out.name}: {seed.origin}", seed_frames=len(seed.frames))
    save_figure(figure, out.with_suffix(".png"))


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Return the checkpoint in a file.

    Raises:
        ValueError: the file is damaged or no checkpoint.
    """
    try:
        loaded: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises RuntimeError, EOFError, UnpicklingError, KeyError, by the damage
        raise ValueError(f"{path} is no checkpoint, or damaged: {str(error).splitlines()[0]}") from None
    return loaded


def _work(config: GenerateConfig) -> None:
    facts = generate(config)
    if config.out == "-":
        return
    out = Path(config.out)
    if not out.is_file():
        raise CommandError(f"{out} was not written.")
    print(
        f"{facts['generated_seconds']:.1f} s of babble from {facts['checkpoint']}, {facts['times_real_time']:g} x real "
        f"time, continuing {facts['seed_origin']}:\n  {out}  {out.with_suffix('.c2').name}  "
        f"{out.with_suffix('.png').name}  {out.with_suffix('.json').name}"
    )


def main() -> None:
    """Run `python -m babble.generate`."""
    run_command(GenerateConfig, _work, "python -m babble.generate", positional="run")


if __name__ == "__main__":
    main()
