"""Generate babble: a prompt and a checkpoint in, a WAV file out.

    babble generate --seconds 60 --out babble.wav
    babble generate runs/NAME --seconds 60 --prompt 12:30 --temperature pitch=0.7,lsp=0.9 --out babble.wav
    babble generate runs/NAME/checkpoints/stage-1.ckpt --streams 4 --out four.wav
    babble generate runs/NAME --seconds inf --out - | aplay -f S16_LE -r 8000
    babble generate --prompt chapter.mp3 --seconds 0 --what-if pitch=flat:120 --out flat.wav

1. The network receives the prompt: by default real speech that the run saved, or silence if it saved none, as with the
   bundled voice (generation/prompts.py).
2. Then each frame is sampled, and is the network's next input (generation/free_run.py).
3. Frames are decoded and written block by block. A guard checks each stream for silence, a held tone, a pulse and a
   loop (generation/output.py).

Next to babble.wav are written babble.c2 (the frames: c2dec plays them), babble.png and babble.json (all settings, and
the alarms with their times in the WAV). With --what-if the same frames are written a second time with some fields
edited (codec/edits.py): babble-what-if.wav, .c2 and .png. Without a run, the bundled voice generates.
"""

import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from babble.cli import CommandError, Interrupted, config_to_dict, run_command
from babble.codec.codec2 import decode_frames, write_c2
from babble.codec.edits import Edit, apply_edits, parse_edits
from babble.codec.frames import Mode
from babble.files import check_writable, write_json
from babble.generation.output import STDOUT, Stream, read_wav, run_streams, write_wav
from babble.generation.prompts import Prompt, find_prompt
from babble.model.config import DeviceName
from babble.run_folder import PRETRAINED, locate_checkpoint


@dataclass(frozen=True)
class GenerateConfig:
    """Generate speech-like babble with a trained network.

    Attributes:
        run: run folder, runs/NAME, or a checkpoint file; the bundled voice by default.
        checkpoint: "best", "last", "stage-N", or the path of a checkpoint file.
        streams: number of streams from the same prompt; several are written to babble-1.wav, babble-2.wav and so on.
        seconds: length to generate, without the prompt; 0 for the prompt alone; "inf" with `--out -` for no end.
        prompt: frames to continue: a time such as 12:30, counted through the held-out recordings in manifest order;
            "frame:18750"; "random"; "silence"; "samples:2", the second prompt that the run saved with its samples; or
            the path of an audio file. Default: "samples:1" if the run has it, else silence.
        prompt_frames: length of the prompt; default: all of a samples prompt or audio file, 1 s of silence, else 200.
        with_prompt: whether the WAV starts with the prompt.
        shards: folder of shards that times and frame numbers refer to; the run's own by default.
        temperature: below 1 sharpens, above 1 flattens the distribution; 1 by default. One number for all fields, or by
            group or field: "pitch=0.7,lsp=0.9". Needs a head with a likelihood, as do --top-p and --min-p.
        top_p: sample only from the most probable levels of a field that together have this probability; default 1.
        min_p: sample only from levels at least this probable, relative to the most probable one; default 0.
        token_temperature: temperature of the tokens, for a voice with tokens; 0.7 by default. --temperature applies to
            the frames.
        guard: on silence, a held tone, a pulse or a loop: "watch" reports it on the terminal and in the JSON, with its
            time in the WAV; "act" also restarts the stream from its prompt; "off" does nothing.
        what_if: edits of fields, separated by commas, e.g. "pitch=flat:120", "energy=+6dB", "lsp=mean", "voicing=off":
            the same frames are also written with these edits. The network's input is not edited.
        device: where the network computes.
        seed: random seed; the same one gives the same frames on the same device.
        out: NAME.wav, with NAME.c2, NAME.png and NAME.json next to it; or "-" for raw pcm (8 kHz, mono, signed 16 bit)
            on standard output.
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
    token_temperature: float | None = None
    guard: Literal["off", "watch", "act"] = "watch"
    what_if: str | None = None
    device: DeviceName = "cpu"
    seed: int = 0
    out: str = "babble.wav"

    def __post_init__(self) -> None:
        """Validate the settings; reject those without effect."""
        if self.streams < 1 or (self.streams > 1 and self.out == STDOUT):
            raise ValueError(f"--streams {self.streams}: must be at least 1, and 1 with --out -.")
        if not self.seconds >= 0 or (self.seconds == 0 and not self.with_prompt):
            raise ValueError(f"--seconds {self.seconds}: must be above 0, or 0 to write the prompt alone.")
        if self.what_if is not None and self.out == STDOUT:
            raise ValueError(f"--what-if {self.what_if} writes a second WAV file: give --out NAME.wav instead of -.")
        if self.prompt_frames is not None and self.prompt_frames < 1:
            raise ValueError(
                f"--prompt-frames {self.prompt_frames}: must be at least 1. To generate without speech as prompt, use "
                "--prompt silence."
            )
        for key in ("temperature", "top_p", "min_p", "token_temperature"):
            value = getattr(self, key)
            if self.seconds == 0 and value is not None:
                flag = f"--{key.replace('_', '-')}"
                raise ValueError(f"{flag} {value} has no effect with --seconds 0, which generates nothing.")
        if math.isinf(self.seconds) and self.out != STDOUT:
            raise ValueError("--seconds inf needs --out -: a file has to end.")
        if self.out != STDOUT and not self.out.endswith(".wav"):
            raise ValueError(f"--out {self.out}: must end in .wav, or be - for raw pcm on standard output.")


def generate(config: GenerateConfig) -> list[dict[str, Any]]:
    """Generate, write all files, and return the content of each stream's JSON.

    Raises:
        FileNotFoundError, ValueError: an unusable run, checkpoint, prompt or setting.
        Interrupted: stopped by a signal; everything generated so far is written.
    """
    # Imported here: torch takes seconds, which --help and a refused setting need not wait for.
    from babble.generation.free_run import FreeRun, choose_sampling, one_thread
    from babble.generation.token_run import check_token_temperature, load_token_level
    from babble.model.checkpoint import build_model, load_checkpoint

    if config.out != STDOUT:
        _check_outputs(config)
    run, checkpoint_path = locate_checkpoint(config.run or PRETRAINED, config.checkpoint)
    checkpoint = load_checkpoint(checkpoint_path)
    model = build_model(checkpoint, config.device)
    mode = model.mode
    sampling = choose_sampling(model, config.temperature, config.top_p, config.min_p)
    token_temperature = check_token_temperature(config.token_temperature, model)
    tokens = load_token_level(run, model)
    prompt = find_prompt(config.prompt, run, mode, config.prompt_frames, config.shards, config.seed)
    edits = parse_edits(config.what_if, mode) if config.what_if else ()

    streams = [
        Stream(out, prompt.frames, mode, config.with_prompt, config.guard != "off") for out in _name_outputs(config)
    ]
    total_frames = _count_frames(config.seconds, mode)
    with one_thread():
        prompts_BTF = np.repeat(prompt.frames[None], config.streams, axis=0)
        free_run = FreeRun(model, prompts_BTF, sampling, config.seed, tokens, token_temperature)
        started = time.monotonic()
        num_frames, stopped_by = run_streams(free_run, streams, total_frames, restart=config.guard == "act")
    seconds = num_frames / mode.frames_per_second
    facts = {
        **config_to_dict(config),
        "checkpoint": str(checkpoint_path),
        "epoch": checkpoint.get("epoch"),
        "step": checkpoint.get("global_step"),
        "model": checkpoint["hyper_parameters"]["model"],
        "mode": mode.name,
        "prompt_origin": prompt.origin,
        "prompt_frames": len(prompt.frames),
        "sampling": {key: list(values) for key, values in asdict(sampling).items()}
        if model.head.has_likelihood
        else None,
        "frames": num_frames,
        "generated_seconds": seconds,
        "times_real_time": round(config.streams * seconds / (time.monotonic() - started), 1),
    }
    all_facts = [{**facts, "out": stream.out, "alarms": stream.alarms} for stream in streams]
    if config.out != STDOUT:
        for stream, stream_facts in zip(streams, all_facts, strict=True):
            _write_files(stream, stream_facts, prompt, edits)
    if stopped_by is not None:
        where = "" if config.out == STDOUT else f" in {', '.join(stream.out for stream in streams)}"
        raise Interrupted(f"stopped after {seconds:.1f} s of babble{where}.", stopped_by)
    return all_facts


def _count_frames(seconds: float, mode: Mode) -> float:
    if math.isinf(seconds):
        return math.inf
    # At least one frame, however short the time.
    return max(int(seconds > 0), round(seconds * mode.frames_per_second))


def _name_outputs(config: GenerateConfig) -> list[str]:
    if config.streams == 1:
        return [config.out]
    path = Path(config.out)
    return [str(path.with_name(f"{path.stem}-{number}.wav")) for number in range(1, config.streams + 1)]


def _check_outputs(config: GenerateConfig) -> None:
    """Raise if a WAV file can't be written, or if a file to be written is the prompt."""
    for out in map(Path, _name_outputs(config)):
        check_writable(out, "--out")
        wavs = (out, _name_edited(out)) if config.what_if else (out,)
        written = [path.with_suffix(suffix).resolve() for path in wavs for suffix in (".wav", ".c2")]
        if config.prompt and Path(config.prompt).resolve() in written:
            raise ValueError(
                f"--prompt {config.prompt} would be overwritten by --out {config.out}: give another --out."
            )


def _name_edited(out: Path) -> Path:
    return out.with_name(f"{out.stem}-what-if.wav")


def _write_files(stream: Stream, facts: dict[str, Any], prompt: Prompt, edits: tuple[Edit, ...]) -> None:
    """Write .c2, .png and .json next to a stream's WAV, and all but the .json for the edited frames."""
    out, frames, mode = Path(stream.out), stream.frames, stream.mode
    if not len(frames):
        return
    prompt_frames = len(frames) - facts["frames"]
    write_c2(out.with_suffix(".c2"), frames, mode)
    _plot(out, frames, mode, f"{out.name}: {prompt.origin}", prompt_frames)
    write_json(out.with_suffix(".json"), facts)
    if edits:
        edited_out, edited = _name_edited(out), apply_edits(frames, edits, mode)
        write_wav(edited_out, decode_frames(edited, mode))
        write_c2(edited_out.with_suffix(".c2"), edited, mode)
        _plot(edited_out, edited, mode, f"{edited_out.name}: {facts['what_if']}; {prompt.origin}", prompt_frames)


def _plot(out: Path, frames: np.ndarray, mode: Mode, title: str, prompt_frames: int) -> None:
    # Imported here: sound does not wait for matplotlib.
    from babble.reporting.plots.figures import save_figure
    from babble.reporting.plots.speech import PLOT_SECONDS, plot_speech

    # A WAV may hold hours: only what the figure can show is read.
    plot_frames = prompt_frames + round(PLOT_SECONDS * mode.frames_per_second)
    # The end of a prompt is marked only if babble follows.
    marked = prompt_frames if len(frames) > prompt_frames else 0
    pcm = read_wav(out, plot_frames * mode.pcm_per_frame)
    shown = frames[:plot_frames]
    figure = plot_speech(shown, mode, pcm, title=title, prompt_frames=marked, clip_frames=len(frames))
    save_figure(figure, out.with_suffix(".png"))


def _print_results(config: GenerateConfig, all_facts: list[dict[str, Any]]) -> None:
    facts = all_facts[0]
    if facts["frames"]:
        speed = f"{facts['times_real_time']:g} x real time"
        print(f"{facts['generated_seconds']:.1f} s of babble from {facts['checkpoint']} ({speed}).")
        print(f"Prompt: {facts['prompt_origin']}, {facts['prompt_frames']} frames. Files:")
    else:
        print(f"{facts['prompt_origin']}: {facts['prompt_frames']} frames, encoded and decoded by Codec 2. Files:")
    for facts in all_facts:
        out = Path(facts["out"])
        if not out.is_file():
            raise CommandError(f"{out} was not written.")
        alarms = f"  ({len(facts['alarms'])} alarms: see the JSON)" if facts["alarms"] else ""
        print(f"  {out}  {out.with_suffix('.c2').name}  {out.with_suffix('.png').name}  {out.stem}.json{alarms}")
        if config.what_if:
            edited = _name_edited(out)
            print(f"  {edited}  {edited.stem}.c2  {edited.stem}.png  with {config.what_if}")


def _run(config: GenerateConfig) -> None:
    all_facts = generate(config)
    if config.out != STDOUT:
        _print_results(config, all_facts)


def main() -> None:
    """Run `babble generate`."""
    run_command(GenerateConfig, _run, "babble generate", positional="run")


if __name__ == "__main__":
    main()
