"""Seed frames + checkpoint -> babble: the network runs free, hearing only itself.

    python -m babble.generate --seconds 60 --out babble.wav
    python -m babble.generate runs/NAME --seconds 60 --seed 12:30 --temperature pitch=0.7,lsp=0.9 --out babble.wav
    python -m babble.generate runs/NAME --seconds inf --out - | aplay -f S16_LE -r 8000
    python -m babble.generate --seed chapter.mp3 --seconds 0 --what-if pitch=flat:120 --out flat.wav

1. The seed, real speech by default, is heard once, all of it, and leaves the state it leaves.
2. From then on each frame is drawn, written, and heard by the network as the next input (`FreeRun`). State is carried,
   so a frame costs the same whether it is the first or the millionth.
3. A guard (detectors.py) hears every stream meanwhile and notices silence, a held tone, a pulse and a loop.

Beside babble.wav lie babble.c2 (the frames: c2dec plays them), babble.png and babble.json (every choice made, and what
the guard noticed). Without a run it is the voice that comes with babble (voice.py) that speaks. With `--what-if` the
same speech lies there a second time, with fields changed (what_if.py): babble-what-if.wav, .c2 and .png.
"""

import json
import math
import re
import sys
import time
import wave
import zipfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from babble.codec import Decoder, c2_header, decode_frames, read_c2, silence_frame
from babble.commands import CommandError, Interrupted, config_to_dict, run_command
from babble.detectors import Guard
from babble.drawing import Drawing
from babble.frames import SAMPLE_RATE_HZ, Mode, pack_packets, unpack_packets
from babble.model import Babbler, model_from_checkpoint
from babble.plots import plot_speech, save_figure
from babble.run import RunFolder
from babble.shards import read_manifest, read_recordings, write_bytes
from babble.what_if import apply_rules, read_rules
from preprocessing.audio import BadRecording, open_recording
from preprocessing.encode import encode_recording

# A seed's pcm is encoded in pieces of this many frames.
PIECE_FRAMES = 7500
# Seeds by time and by frame have this length: 8 s in mode 1300, a window of 2017.
SEED_FRAMES = 200
SILENCE_SECONDS = 1
GUARDS = ("off", "watch", "act")
# Frames that are made at once and then written, to the disk or the pipe: a second or two of speech.
BLOCK_FRAMES = 50
# The voice that comes with babble: a run folder with nothing but a checkpoint (voice.py makes it).
VOICE = Path(__file__).parent / "voice"
# A picture of more than this is a smear.
PLOT_SECONDS = 60


@dataclass(frozen=True)
class GenerateConfig:
    """Let a trained network babble.

    Attributes:
        run: the run's folder, runs/NAME; the voice that comes with babble by default.
        checkpoint: "best", "last", "stage-N", or the path of a checkpoint file.
        streams: how many babble side by side from the same seed, each into files of its own: babble-1.wav and so on.
        seconds: how much to generate, the seed not counted; 0 for the seed alone; "inf" with `--out -` goes on until it
            is stopped.
        seed: what is continued: a time such as 12:30, counted through the held-out recordings in manifest order;
            "frame:18750"; "random"; "silence"; "listening:2", the run's own second listening seed; or the path of an
            audio file. By default the run's first listening seed, for which no shards are needed, or silence for the
            voice that comes with babble.
        seed_frames: length of the seed; by default all of a listening seed or an audio file, a second of silence, else
            200 frames.
        with_seed: whether the seed opens the WAV.
        shards: the folder of shards that times and frames count through; the run's own by default.
        temperature: below 1 keeps to what is likely, above 1 dares more; 1 is what was learned. One for all fields, or
            by group or field: "pitch=0.7,lsp=0.9". This and the next two only for heads with a likelihood.
        top_p: of each field's likeliest levels as many as hold this probability together; 1 by default, all of them.
        min_p: of each field only levels at least this probable, in parts of the likeliest one; 0 by default.
        guard: what is done about silence, a held tone, a pulse or a loop: "watch" says so on the screen and in the
            JSON, "act" also lets the stream start over from its seed, "off" nothing.
        what_if: rules for fields, such as "pitch=flat:120", "energy=+6dB", "lsp=mean", "voicing=off", or several with
            commas between: the same speech, changed so, is written a second time. The network hears what it said.
        random_seed: the same one gives the same frames.
        out: where to write: NAME.wav with NAME.c2, NAME.png and NAME.json beside it; or "-" for raw pcm (8 kHz, mono,
            signed 16 bit) to standard output.
    """

    run: Path | None = None
    checkpoint: str = "best"
    streams: int = 1
    seconds: float = 60.0
    seed: str | None = None
    seed_frames: int | None = None
    with_seed: bool = True
    shards: Path | None = None
    temperature: str | float | None = None
    top_p: str | float | None = None
    min_p: str | float | None = None
    guard: str = "watch"
    what_if: str | None = None
    random_seed: int = 0
    out: str = "babble.wav"

    def __post_init__(self) -> None:
        """Refuse what nothing could obey."""
        if self.guard not in GUARDS:
            raise ValueError(f"--guard {self.guard}: none of {', '.join(GUARDS)}.")
        if self.streams < 1 or (self.streams > 1 and self.out == "-"):
            raise ValueError(f"--streams {self.streams}: at least 1 is needed, and no more than 1 with --out -.")
        if not self.seconds >= 0 or (self.seconds == 0 and not self.with_seed):
            raise ValueError(f"--seconds {self.seconds}: above 0 is needed, or 0 with the seed in the WAV.")
        if self.what_if is not None and self.out == "-":
            raise ValueError(f"--what-if {self.what_if} is written beside a WAV: give --out NAME.wav, not -.")
        if self.seed_frames is not None and self.seed_frames < 1:
            raise ValueError(f"--seed_frames {self.seed_frames}: at least 1 is needed, silence for none of it.")
        if math.isinf(self.seconds) and self.out != "-":
            raise ValueError("--seconds inf needs --out -: a file has to end.")
        if self.out != "-" and not self.out.endswith(".wav"):
            raise ValueError(f"--out {self.out}: a name that ends in .wav, or - for raw pcm, is needed.")


class FreeRun:
    """B streams that run free side by side.

    Args:
        model: the network, on any device.
        seeds_BTF: B seeds of T frames each.
        drawing: how levels are drawn; as they were learned by default.
        random_seed: the same one gives the same frames on the same machine.
    """

    def __init__(
        self, model: Babbler, seeds_BTF: np.ndarray, drawing: Drawing | None = None, random_seed: int = 0
    ) -> None:
        device = next(model.parameters()).device
        generator = torch.Generator(device).manual_seed(random_seed)
        with torch.inference_mode():
            hidden_BTH, state = model(torch.from_numpy(seeds_BTF.astype(np.int64)).to(device))
            self._step = model.make_step()
            self._draw = model.typed_head.make_draw(drawing or Drawing.for_mode(model.mode), generator)
        self._dtype = model.mode.dtype
        self._after_seed = hidden_BTH[:, -1], state
        self._now = self._after_seed

    def make_block(self) -> np.ndarray:
        """Return the next frames (B, BLOCK_FRAMES, F) of every stream."""
        hidden_BH, state = self._now
        # A block at a time: going in and out of inference mode and of torch takes as long as a layer.
        with torch.inference_mode():
            block = []
            for _ in range(BLOCK_FRAMES):
                frames_BF = self._draw(hidden_BH)
                block.append(frames_BF)
                hidden_BH, state = self._step(frames_BF, state)
            self._now = hidden_BH, state
            return torch.stack(block, dim=1).cpu().numpy().astype(self._dtype)

    def start_over(self, stream: int) -> None:
        """Let one stream go on from its seed, as if it had said nothing yet; what it draws is new."""
        (hidden_BH, state), (seed_BH, seed_state) = self._now, self._after_seed
        with torch.inference_mode():
            hidden_BH[stream] = seed_BH[stream]
            for layer, seed_layer in zip(state, seed_state, strict=True):
                for now, then in zip(layer, seed_layer, strict=True):
                    now[stream] = then[stream]


def iterate_babble(
    model: Babbler, seeds_BTF: np.ndarray, drawing: Drawing | None = None, random_seed: int = 0
) -> Iterator[np.ndarray]:
    """Yield the frames (B, F) that continue each seed, without end; the arguments are those of `FreeRun`."""
    free_run = FreeRun(model, seeds_BTF, drawing, random_seed)
    while True:
        yield from free_run.make_block().swapaxes(0, 1)


def generate_frames(
    model: Babbler, seeds_BTF: np.ndarray, num_frames: int, drawing: Drawing | None = None, random_seed: int = 0
) -> np.ndarray:
    """Return the frames (B, num_frames, F) that continue each seed; the arguments are those of `iterate_babble`."""
    frames = iterate_babble(model, seeds_BTF, drawing, random_seed)
    return np.stack([next(frames) for _ in range(num_frames)], axis=1)


def find_drawing(config: GenerateConfig, model: Babbler) -> Drawing:
    """Return how levels are drawn, from what the user set of temperature, top_p and min_p.

    Raises:
        ValueError: a setting that can't be, or that the network's head could not obey.
    """
    settings = {key: getattr(config, key) for key in ("temperature", "top_p", "min_p")}
    settings = {key: str(value) for key, value in settings.items() if value is not None}
    if settings and not model.typed_head.has_likelihood:
        key, value = next(iter(settings.items()))
        raise ValueError(
            f"--{key} {value} has no effect: the {model.config.head} head of {config.run} has no likelihood to draw "
            "from. Leave it away."
        )
    return Drawing.for_mode(model.mode, **settings)


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
    name = config.seed or ("listening:1" if config.run else "silence")
    seed = _read_seed(name, config, run, mode)
    wanted = config.seed_frames or len(seed.frames)
    if len(seed.frames) < max(1, wanted):
        raise ValueError(f"--seed {name} has {len(seed.frames)} frames, but {max(1, wanted)} are needed.")
    return Seed(seed.frames[:wanted], seed.origin)


def _read_seed(name: str, config: GenerateConfig, run: RunFolder, mode: Mode) -> Seed:
    seed_frames = config.seed_frames or SEED_FRAMES
    if name == "silence":
        silent_frames = config.seed_frames or SILENCE_SECONDS * mode.frames_per_second
        return Seed(np.repeat(silence_frame(mode)[None], silent_frames, axis=0), "silence")
    if match := re.fullmatch(r"listening:(\d+)", name):
        path = run.seeds / f"{match[1]}.c2"
        if not path.is_file():
            there = ", ".join(sorted(f"listening:{path.stem}" for path in run.seeds.glob("*.c2")))
            raise FileNotFoundError(f"{run.path} has no seed {name}; it has {there or 'none'}.")
        frames, _ = read_c2(path)
        return Seed(frames, f"{name} of {run.path}")
    seconds = _seconds_of(name)
    frame_number = re.fullmatch(r"frame:(\d+)", name)
    if name == "random" or seconds is not None or frame_number:
        held_out, folder = _held_out_frames(config, run, mode)
        latest = len(held_out) - seed_frames
        if name == "random":
            first = int(np.random.default_rng(config.random_seed).integers(max(1, latest + 1)))
        else:
            first = int(frame_number[1]) if frame_number else round((seconds or 0) * mode.frames_per_second)
        if not 0 <= first <= latest:
            raise ValueError(
                f"--seed {name}: frame {first} and {seed_frames} frames on is behind the end of the "
                f"held-out recordings of {folder}, which have {len(held_out)} frames "
                f"({len(held_out) / mode.frames_per_second / 60:.1f} minutes)."
            )
        return Seed(held_out[first : first + seed_frames], f"held-out frame {first} of {folder}")
    path = Path(name)
    if not path.is_file():
        raise FileNotFoundError(
            f"--seed {name}: neither a time (12:30), frame:N, random, silence, listening:N, nor a file that exists."
        )
    return Seed(_frames_of_audio(path, mode), str(path))


def _held_out_frames(config: GenerateConfig, run: RunFolder, mode: Mode) -> tuple[np.ndarray, Path]:
    if config.shards is None and config.run is None:
        raise ValueError("the voice that comes with babble brings no speech: name --shards, or another --seed.")
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


def _paths_of(config: GenerateConfig) -> list[str]:
    """Return where each stream goes: the path that the user named, or numbered ones."""
    if config.streams == 1:
        return [config.out]
    path = Path(config.out)
    return [str(path.with_name(f"{path.stem}-{number}.wav")) for number in range(1, config.streams + 1)]


class _Stream:
    """One stream on its way to its files: decoded, written, and heard by its guard."""

    def __init__(self, out: str, seed: Seed, mode: Mode, config: GenerateConfig) -> None:
        self.out, self.seed, self.mode = out, seed, mode
        self.writer, self.decoder = _Writer(out), Decoder(mode)
        self.guard = None if config.guard == "off" else Guard(mode)
        self.blocks: list[np.ndarray] = []
        self.alarms: list[dict[str, Any]] = []
        self.made = self.guarded_from = 0
        heard = self.decoder.decode(pack_packets(seed.frames, mode))
        if config.with_seed:
            self.writer.write(heard)

    def take(self, block: np.ndarray) -> bool:
        """Write a block (T, F); return whether the guard noticed something new."""
        self.writer.write(self.decoder.decode(pack_packets(block, self.mode)))
        if self.out != "-":
            self.blocks.append(block)
        self.made += len(block)
        found = self.guard.hear(block) if self.guard else []
        for alarm in found:
            rate = self.mode.frames_per_second
            first = self.guarded_from + alarm.first_frame
            noticed = {"kind": alarm.kind, "at_seconds": first / rate, "noticed_after_seconds": alarm.frames / rate}
            self.alarms.append({**noticed, "period_seconds": alarm.period_frames / rate})
            print(f"{self.out}: {alarm.kind} from {first / rate:.1f} s on", file=sys.stderr, flush=True)
        return bool(found)

    def start_over(self) -> None:
        """Let a new guard hear what comes now."""
        self.guard, self.guarded_from = Guard(self.mode), self.made


def generate(config: GenerateConfig) -> list[dict[str, Any]]:
    """Generate as asked, write every file, and return what the JSON of each stream says.

    Raises:
        FileNotFoundError, ValueError: a run, checkpoint, seed or setting that can't be; the message says which.
        Interrupted: stopped by Ctrl-C; what was generated until then is written.
    """
    run = RunFolder(config.run or VOICE)
    path = run.find_checkpoint(config.checkpoint)
    checkpoint = load_checkpoint(path)
    model = model_from_checkpoint(checkpoint)
    mode = model.mode
    drawing = find_drawing(config, model)
    seed = find_seed(config, run, mode)
    rules = read_rules(config.what_if, mode) if config.what_if else ()

    threads = torch.get_num_threads()
    # A few streams are a chain of small products: a second thread only costs.
    torch.set_num_threads(1)
    streams = [_Stream(out, seed, mode, config) for out in _paths_of(config)]
    free_run = FreeRun(model, np.repeat(seed.frames[None], config.streams, axis=0), drawing, config.random_seed)
    # However short, a time that was asked for is a frame.
    total = math.inf
    if not math.isinf(config.seconds):
        total = max(int(config.seconds > 0), round(config.seconds * mode.frames_per_second))
    started, stopped = time.monotonic(), False
    bar, made = _open_bar(total / mode.frames_per_second), 0
    try:
        while made < total:
            blocks = free_run.make_block()[:, : int(min(BLOCK_FRAMES, total - made))]
            made += blocks.shape[1]
            for number, (stream, block) in enumerate(zip(streams, blocks, strict=True)):
                if stream.take(block) and config.guard == "act":
                    free_run.start_over(number)
                    stream.start_over()
            bar.update(blocks.shape[1] / mode.frames_per_second)
    except KeyboardInterrupt:
        stopped = True
    finally:
        bar.close()
        for stream in streams:
            stream.writer.close()
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
        "drawing": {key: list(values) for key, values in asdict(drawing).items()}
        if model.typed_head.has_likelihood
        else None,
        "frames": made,
        "generated_seconds": seconds,
        "times_real_time": round(config.streams * seconds / (time.monotonic() - started), 1),
    }
    shown = seed if config.with_seed else Seed(seed.frames[:0], seed.origin)
    all_facts = [{**facts, "out": stream.out, "alarms": stream.alarms} for stream in streams]
    for stream, stream_facts in zip(streams, all_facts, strict=True):
        frames = np.concatenate([shown.frames, *stream.blocks])
        out = Path(stream.out)
        if config.out == "-" or not len(frames):
            continue
        _write_beside(out, frames, shown, mode)
        write_bytes(out.with_suffix(".json"), (json.dumps(stream_facts, indent=2) + "\n").encode())
        if rules:
            changed, changed_out = apply_rules(frames, rules, mode), _what_if_path(out)
            writer = _Writer(str(changed_out))
            writer.write(decode_frames(changed, mode))
            writer.close()
            _write_beside(changed_out, changed, Seed(shown.frames, f"{config.what_if}; {seed.origin}"), mode)
    if stopped:
        raise Interrupted(
            f"stopped after {seconds:.1f} s of babble" + ("" if config.out == "-" else f" in {config.out}.")
        )
    return all_facts


def _what_if_path(out: Path) -> Path:
    return out.with_name(f"{out.stem}-what-if.wav")


def _write_beside(out: Path, frames: np.ndarray, seed: Seed, mode: Mode) -> None:
    """Write the frames and the picture of what a WAV holds: the seed, and what came then."""
    write_bytes(out.with_suffix(".c2"), c2_header(mode) + pack_packets(frames, mode))
    shown = PLOT_SECONDS * mode.frames_per_second
    # Where the seed stands alone, nothing is set off from it.
    marked = min(len(seed.frames), shown) if len(frames) > len(seed.frames) else 0
    with wave.open(str(out), "rb") as file:
        pcm = np.frombuffer(file.readframes(shown * mode.pcm_per_frame), "<i2").astype(np.int16)
    figure = plot_speech(frames[:shown], mode, pcm, title=f"{out.name}: {seed.origin}", seed_frames=marked)
    save_figure(figure, out.with_suffix(".png"))


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


def _work(config: GenerateConfig) -> None:
    all_facts = generate(config)
    if config.out == "-":
        return
    facts = all_facts[0]
    if facts["frames"]:
        made = f"{facts['generated_seconds']:.1f} s of babble from {facts['checkpoint']}"
        print(f"{made}, {facts['times_real_time']:g} x real time, continuing {facts['seed_origin']}:")
    else:
        print(f"{facts['seed_origin']}, {facts['seed_frames']} frames, as Codec 2 has it:")
    for facts in all_facts:
        out = Path(facts["out"])
        if not out.is_file():
            raise CommandError(f"{out} was not written.")
        alarms = f"  ({len(facts['alarms'])} alarms: see the JSON)" if facts["alarms"] else ""
        print(f"  {out}  {out.with_suffix('.c2').name}  {out.with_suffix('.png').name}  {out.stem}.json{alarms}")
        if config.what_if:
            changed = _what_if_path(out)
            print(f"  {changed}  {changed.stem}.c2  {changed.stem}.png  with {config.what_if}")


def main() -> None:
    """Run `python -m babble.generate`."""
    run_command(GenerateConfig, _work, "python -m babble.generate", positional="run")


if __name__ == "__main__":
    main()
