"""Prompt frames + checkpoint -> babble: the network runs free, hearing only itself.

    python -m babble.generate --seconds 60 --out babble.wav
    python -m babble.generate runs/NAME --seconds 60 --prompt 12:30 --temperature pitch=0.7,lsp=0.9 --out babble.wav
    python -m babble.generate runs/NAME --seconds inf --out - | aplay -f S16_LE -r 8000
    python -m babble.generate --prompt chapter.mp3 --seconds 0 --what-if pitch=flat:120 --out flat.wav

1. The prompt, real speech by default, is heard once, all of it, and leaves the state it leaves.
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
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from babble.cli import CommandError, Interrupted, config_to_dict, run_command
from babble.codec.codec2 import Decoder, c2_header, decode_frames, read_c2, silence_frame
from babble.codec.edits import apply_edits, parse_edits
from babble.codec.failures import Guard
from babble.codec.frames import SAMPLE_RATE_HZ, Mode, pack_packets, unpack_packets
from babble.data.shards import read_manifest, read_recordings
from babble.files import write_bytes
from babble.generation.free_run import BLOCK_FRAMES, FreeRun
from babble.model.babbler import Babbler
from babble.model.checkpoint import build_model, load_checkpoint
from babble.model.sampling import Sampling
from babble.reporting.plots.figures import save_figure
from babble.reporting.plots.speech import plot_speech
from babble.run_folder import RunFolder
from preprocessing.audio import BadRecording, open_recording
from preprocessing.encode import encode_recording

# A prompt's pcm is encoded in pieces of this many frames.
PIECE_FRAMES = 7500
# Prompts by time and by frame have this length: 8 s in mode 1300, a window of 2017.
PROMPT_FRAMES = 200
SILENCE_SECONDS = 1
GUARDS = ("off", "watch", "act")
# The voice that comes with babble: a run folder with nothing but a checkpoint (voice.py makes it).
VOICE = Path(__file__).parent / "pretrained"
# A picture of more than this is a smear.
PLOT_SECONDS = 60


@dataclass(frozen=True)
class GenerateConfig:
    """Let a trained network babble.

    Attributes:
        run: the run's folder, runs/NAME; the voice that comes with babble by default.
        checkpoint: "best", "last", "stage-N", or the path of a checkpoint file.
        streams: how many babble side by side from the same prompt, each into files of its own: babble-1.wav and so on.
        seconds: how much to generate, the prompt not counted; 0 for the prompt alone; "inf" with `--out -` until it
            is stopped.
        prompt: what is continued: a time such as 12:30, counted through the held-out recordings in manifest order;
            "frame:18750"; "random"; "silence"; "samples:2", the run's own second samples prompt; or the path of an
            audio file. By default the run's first samples prompt, for which no shards are needed, or silence for the
            voice that comes with babble.
        prompt_frames: length; by default all of a samples prompt or an audio file, a second of silence, else
            200 frames.
        with_prompt: whether the prompt opens the WAV.
        shards: the folder of shards that times and frames count through; the run's own by default.
        temperature: below 1 keeps to what is likely, above 1 dares more; 1 is what was learned. One for all fields, or
            by group or field: "pitch=0.7,lsp=0.9". This and the next two only for heads with a likelihood.
        top_p: of each field's likeliest levels as many as hold this probability together; 1 by default, all of them.
        min_p: of each field only levels at least this probable, in parts of the likeliest one; 0 by default.
        guard: what is done about silence, a held tone, a pulse or a loop: "watch" says so on the screen and in the
            JSON, "act" also lets the stream start over from its prompt, "off" nothing.
        what_if: edits for fields, such as "pitch=flat:120", "energy=+6dB", "lsp=mean", "voicing=off", or several with
            commas between: the same speech, changed so, is written a second time. The network hears what it said.
        seed: the same one gives the same frames.
        out: where to write: NAME.wav with NAME.c2, NAME.png and NAME.json beside it; or "-" for raw pcm (8 kHz, mono,
            signed 16 bit) to standard output.
    """

    run: Path | None = None
    checkpoint: str = "best"
    streams: int = 1
    seconds: float = 60.0
    prompt: str | None = None
    prompt_frames: int | None = None
    with_prompt: bool = True
    shards: Path | None = None
    temperature: str | float | None = None
    top_p: str | float | None = None
    min_p: str | float | None = None
    guard: str = "watch"
    what_if: str | None = None
    seed: int = 0
    out: str = "babble.wav"

    def __post_init__(self) -> None:
        """Refuse what nothing could obey."""
        if self.guard not in GUARDS:
            raise ValueError(f"--guard {self.guard}: none of {', '.join(GUARDS)}.")
        if self.streams < 1 or (self.streams > 1 and self.out == "-"):
            raise ValueError(f"--streams {self.streams}: at least 1 is needed, and no more than 1 with --out -.")
        if not self.seconds >= 0 or (self.seconds == 0 and not self.with_prompt):
            raise ValueError(f"--seconds {self.seconds}: above 0 is needed, or 0 with the prompt in the WAV.")
        if self.what_if is not None and self.out == "-":
            raise ValueError(f"--what-if {self.what_if} is written beside a WAV: give --out NAME.wav, not -.")
        if self.prompt_frames is not None and self.prompt_frames < 1:
            raise ValueError(f"--prompt_frames {self.prompt_frames}: at least 1 is needed, silence for none of it.")
        if math.isinf(self.seconds) and self.out != "-":
            raise ValueError("--seconds inf needs --out -: a file has to end.")
        if self.out != "-" and not self.out.endswith(".wav"):
            raise ValueError(f"--out {self.out}: a name that ends in .wav, or - for raw pcm, is needed.")


def resolve_sampling(config: GenerateConfig, model: Babbler) -> Sampling:
    """Return how levels are drawn, from what the user set of temperature, top_p and min_p.

    Raises:
        ValueError: a setting that can't be, or that the network's head could not obey.
    """
    settings = {key: getattr(config, key) for key in ("temperature", "top_p", "min_p")}
    settings = {key: str(value) for key, value in settings.items() if value is not None}
    if settings and not model.head.has_likelihood:
        key, value = next(iter(settings.items()))
        raise ValueError(
            f"--{key} {value} has no effect: the {model.config.head} head of {config.run} has no likelihood to draw "
            "from. Leave it away."
        )
    return Sampling.for_mode(model.mode, **settings)


@dataclass(frozen=True)
class Prompt:
    """Frames to continue (T, F), and where they are from in words."""

    frames: np.ndarray
    origin: str


def _seconds_of(prompt: str) -> float | None:
    if not re.fullmatch(r"(\d+:)?\d+:\d+(\.\d+)?", prompt):
        return None
    return sum(float(part) * 60**place for place, part in enumerate(reversed(prompt.split(":"))))


def find_prompt(config: GenerateConfig, run: RunFolder, mode: Mode) -> Prompt:
    """Return the frames that a user's `--prompt` means.

    Raises:
        FileNotFoundError: no such samples prompt, shards or audio file.
        ValueError: a place past the held-out recordings, a prompt shorter than asked for, shards or audio of
            another kind.
    """
    name = config.prompt or ("samples:1" if config.run else "silence")
    prompt = _read_prompt(name, config, run, mode)
    wanted = config.prompt_frames or len(prompt.frames)
    if len(prompt.frames) < max(1, wanted):
        raise ValueError(f"--prompt {name} has {len(prompt.frames)} frames, but {max(1, wanted)} are needed.")
    return Prompt(prompt.frames[:wanted], prompt.origin)


def _read_prompt(name: str, config: GenerateConfig, run: RunFolder, mode: Mode) -> Prompt:
    prompt_frames = config.prompt_frames or PROMPT_FRAMES
    if name == "silence":
        silent_frames = config.prompt_frames or SILENCE_SECONDS * mode.frames_per_second
        return Prompt(np.repeat(silence_frame(mode)[None], silent_frames, axis=0), "silence")
    if match := re.fullmatch(r"samples:(\d+)", name):
        path = run.prompts / f"{match[1]}.c2"
        if not path.is_file():
            there = ", ".join(sorted(f"samples:{path.stem}" for path in run.prompts.glob("*.c2")))
            raise FileNotFoundError(f"{run.path} has no prompt {name}; it has {there or 'none'}.")
        frames, _ = read_c2(path)
        return Prompt(frames, f"{name} of {run.path}")
    seconds = _seconds_of(name)
    frame_number = re.fullmatch(r"frame:(\d+)", name)
    if name == "random" or seconds is not None or frame_number:
        held_out, folder = _held_out_frames(config, run, mode)
        latest = len(held_out) - prompt_frames
        if name == "random":
            first = int(np.random.default_rng(config.seed).integers(max(1, latest + 1)))
        else:
            first = int(frame_number[1]) if frame_number else round((seconds or 0) * mode.frames_per_second)
        if not 0 <= first <= latest:
            raise ValueError(
                f"--prompt {name}: frame {first} and {prompt_frames} frames on is behind the end of the "
                f"held-out recordings of {folder}, which have {len(held_out)} frames "
                f"({len(held_out) / mode.frames_per_second / 60:.1f} minutes)."
            )
        return Prompt(held_out[first : first + prompt_frames], f"held-out frame {first} of {folder}")
    path = Path(name)
    if not path.is_file():
        raise FileNotFoundError(
            f"--prompt {name}: neither a time (12:30), frame:N, random, silence, samples:N, nor a file that exists."
        )
    return Prompt(_frames_of_audio(path, mode), str(path))


def _held_out_frames(config: GenerateConfig, run: RunFolder, mode: Mode) -> tuple[np.ndarray, Path]:
    if config.shards is None and config.run is None:
        raise ValueError("the voice that comes with babble brings no speech: name --shards, or another --prompt.")
    named = config.shards or run.read_config()["data"]["shards"]
    folder = Path(named)
    manifest = read_manifest(folder)
    if manifest.mode != mode:
        raise ValueError(f"{folder} is of mode {manifest.mode.name}, the run of mode {mode.name}: name other --shards.")
    recordings = [r for split in ("validation", "test") for r in read_recordings(folder, manifest, split)]
    if not recordings:
        raise ValueError(f"{folder} holds nothing held out, so no prompt can be taken from it.")
    return np.concatenate([recording.frames for recording in recordings]), folder


def _frames_of_audio(path: Path, mode: Mode) -> np.ndarray:
    """Return a user's own speech as frames, made as the preprocessing job makes them."""
    if path.suffix == ".c2":
        frames, found = read_c2(path)
        if found != mode:
            raise ValueError(f"--prompt {path} is of mode {found.name}, the run of mode {mode.name}.")
        return frames
    try:
        with open_recording(path) as recording:
            packets = encode_recording(recording.pcm_blocks(), mode, PIECE_FRAMES)
    except BadRecording as bad:
        raise ValueError(f"--prompt {path}: {bad}") from None
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

    def __init__(self, out: str, prompt: Prompt, mode: Mode, config: GenerateConfig) -> None:
        self.out, self.prompt, self.mode = out, prompt, mode
        self.writer, self.decoder = _Writer(out), Decoder(mode)
        self.guard = None if config.guard == "off" else Guard(mode)
        self.blocks: list[np.ndarray] = []
        self.alarms: list[dict[str, Any]] = []
        self.made = self.guarded_from = 0
        heard = self.decoder.decode(pack_packets(prompt.frames, mode))
        if config.with_prompt:
            self.writer.write(heard)

    def take(self, block: np.ndarray) -> bool:
        """Write a block (T, F); return whether the guard noticed something new."""
        self.writer.write(self.decoder.decode(pack_packets(block, self.mode)))
        if self.out != "-":
            self.blocks.append(block)
        self.made += len(block)
        found = self.guard.update(block) if self.guard else []
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
        FileNotFoundError, ValueError: a run, checkpoint, prompt or setting that can't be; the message says which.
        Interrupted: stopped by Ctrl-C; what was generated until then is written.
    """
    run = RunFolder(config.run or VOICE)
    path = run.find_checkpoint(config.checkpoint)
    checkpoint = load_checkpoint(path)
    model = build_model(checkpoint)
    mode = model.mode
    sampling = resolve_sampling(config, model)
    prompt = find_prompt(config, run, mode)
    edits = parse_edits(config.what_if, mode) if config.what_if else ()

    threads = torch.get_num_threads()
    # A few streams are a chain of small products: a second thread only costs.
    torch.set_num_threads(1)
    streams = [_Stream(out, prompt, mode, config) for out in _paths_of(config)]
    free_run = FreeRun(model, np.repeat(prompt.frames[None], config.streams, axis=0), sampling, config.seed)
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
        "prompt_origin": prompt.origin,
        "prompt_frames": len(prompt.frames),
        "sampling": {key: list(values) for key, values in asdict(sampling).items()}
        if model.head.has_likelihood
        else None,
        "frames": made,
        "generated_seconds": seconds,
        "times_real_time": round(config.streams * seconds / (time.monotonic() - started), 1),
    }
    shown = prompt if config.with_prompt else Prompt(prompt.frames[:0], prompt.origin)
    all_facts = [{**facts, "out": stream.out, "alarms": stream.alarms} for stream in streams]
    for stream, stream_facts in zip(streams, all_facts, strict=True):
        frames = np.concatenate([shown.frames, *stream.blocks])
        out = Path(stream.out)
        if config.out == "-" or not len(frames):
            continue
        _write_beside(out, frames, shown, mode)
        write_bytes(out.with_suffix(".json"), (json.dumps(stream_facts, indent=2) + "\n").encode())
        if edits:
            changed, changed_out = apply_edits(frames, edits, mode), _what_if_path(out)
            writer = _Writer(str(changed_out))
            writer.write(decode_frames(changed, mode))
            writer.close()
            _write_beside(changed_out, changed, Prompt(shown.frames, f"{config.what_if}; {prompt.origin}"), mode)
    if stopped:
        raise Interrupted(
            f"stopped after {seconds:.1f} s of babble" + ("" if config.out == "-" else f" in {config.out}.")
        )
    return all_facts


def _what_if_path(out: Path) -> Path:
    return out.with_name(f"{out.stem}-what-if.wav")


def _write_beside(out: Path, frames: np.ndarray, prompt: Prompt, mode: Mode) -> None:
    """Write the frames and the picture of what a WAV holds: the prompt, and what came then."""
    write_bytes(out.with_suffix(".c2"), c2_header(mode) + pack_packets(frames, mode))
    shown = PLOT_SECONDS * mode.frames_per_second
    # Where the prompt stands alone, nothing is set off from it.
    marked = min(len(prompt.frames), shown) if len(frames) > len(prompt.frames) else 0
    with wave.open(str(out), "rb") as file:
        pcm = np.frombuffer(file.readframes(shown * mode.pcm_per_frame), "<i2").astype(np.int16)
    figure = plot_speech(frames[:shown], mode, pcm, title=f"{out.name}: {prompt.origin}", prompt_frames=marked)
    save_figure(figure, out.with_suffix(".png"))


def _work(config: GenerateConfig) -> None:
    all_facts = generate(config)
    if config.out == "-":
        return
    facts = all_facts[0]
    if facts["frames"]:
        made = f"{facts['generated_seconds']:.1f} s of babble from {facts['checkpoint']}"
        print(f"{made}, {facts['times_real_time']:g} x real time, continuing {facts['prompt_origin']}:")
    else:
        print(f"{facts['prompt_origin']}, {facts['prompt_frames']} frames, as Codec 2 has it:")
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
