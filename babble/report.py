"""Runs and sweeps on one page to look at and listen to: a single file that needs no network.

    python -m babble.report runs/A [runs/B ...] [--sources RECORDINGS...] --out report.html

1. `read_run` and `read_sweep` take from a folder what it holds: settings, figures, curves, evaluations, trials. What a
   run has not got yet is left out.
2. `gather_rows` brings together the clips of `samples/` that continue the same prompt, real speech first.
3. `build_page` puts all of it, as JSON, into page/page.html with the style and the script beside it, and with uPlot,
   which draws the curves. A Content-Security-Policy lets these scripts run and forbids every request.

Shards hold codec frames and no recordings, so what the page calls real speech is the codec's rendering of it. Where the
recordings are named (`--sources`, as `jobs.preprocess` took them) they stand before it.
"""

import base64
import hashlib
import html
import io
import json
import math
import re
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import yaml

from babble.cli import flatten, run_command
from babble.codec.codec2 import read_c2
from babble.codec.frames import MODES, SAMPLE_RATE_HZ, Mode, energy_db, lsp_hz, pitch_hz
from babble.evaluation.speech_statistics import format_statistics
from babble.files import read_json_lines, write_bytes
from babble.run_folder import RunFolder
from babble.sweeps.folder import SweepFolder, rank
from preprocessing.audio import BadRecording, open_recording
from preprocessing.kinds import FRAME_SUFFIXES
from preprocessing.sources import Source, find_sources, open_source

PAGE = Path(__file__).parent / "reporting" / "page"
# More points than a curve has pixels are not seen.
MAX_POINTS = 2000
# What says where and when, not what settings do.
OWN_SETTINGS = ("name", "runs")


@dataclass(frozen=True)
class ReportConfig:
    """Put runs and sweeps on one page to look at and listen to.

    Attributes:
        runs: folders of runs and sweeps, as in runs/NAME.
        out: the page, one HTML file that needs no network.
        epochs: how many of each run's listenings can be heard, evenly spread and the last among them; all are named.
        sources: the recordings, as jobs.preprocess took them, to hear beside what the codec leaves of them.
    """

    runs: tuple[Path, ...] = ()
    out: Path = Path("report.html")
    epochs: int = 3
    sources: tuple[Path, ...] = ()

    def __post_init__(self) -> None:
        """Refuse a page of nothing."""
        if not self.runs:
            raise ValueError("name what to report: python -m babble.report runs/NAME [runs/OTHER ...]")
        if self.epochs < 1:
            raise ValueError(f"--epochs {self.epochs}: at least 1 is needed.")


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is damaged, no JSON ({error}): restore it, or move it away.") from None


def _read_optional(path: Path, default: Any) -> Any:
    return _read_json(path) if path.is_file() else default


def _finite(value: Any) -> float | None:
    """Return a number as JSON can hold it: None for what is missing or not finite."""
    number = float(value) if value not in ("", None) else math.nan
    return number if math.isfinite(number) else None


def _as_yaml(value: Any) -> str:
    return yaml.safe_dump(value, default_flow_style=True, width=math.inf).removesuffix("\n").removesuffix("\n...")


# ---- runs


def read_curves(path: Path) -> dict[str, dict[str, list[Any]]]:
    """Return the curves of a metrics.jsonl by metric: "steps" and "values", thinned to `MAX_POINTS`; empty without one.

    Raises:
        ValueError: a line is damaged; the message names file and line.
    """
    curves: dict[str, dict[str, list[Any]]] = {}
    for number, row in enumerate(read_json_lines(path), 1):
        try:
            step = int(row.pop("step"))
            values = {name: _finite(value) for name, value in row.items()}
        except (KeyError, TypeError, ValueError):
            raise ValueError(f"{path}: line {number} is damaged, a step and numbers expected: remove it.") from None
        for name, value in values.items():
            curve = curves.setdefault(name, {"steps": [], "values": []})
            curve["steps"].append(step)
            curve["values"].append(value)
    return {name: {key: _thin(points) for key, points in curve.items()} for name, curve in curves.items()}


def _thin(points: list[Any]) -> list[Any]:
    if len(points) <= MAX_POINTS:
        return points
    return [points[n] for n in np.linspace(0, len(points) - 1, MAX_POINTS).astype(int)]


def pick_evenly(names: list[str], most: int) -> list[str]:
    """Return at most so many of the names, evenly spread; the last is always among them, the first from two on."""
    if len(names) <= most:
        return names
    places = np.linspace(len(names) - 1, 0, most).round().astype(int)
    return [names[n] for n in sorted(places)]


def read_run(run: RunFolder, name: str, epochs: int) -> dict[str, Any]:
    """Return what a run's folder says of it, ready for JSON.

    Args:
        run: the folder.
        name: what the page calls it.
        epochs: how many of its listenings are to be heard.

    Raises:
        FileNotFoundError: no run is in this folder.
        ValueError: a file of it is damaged; the message says which.
    """
    try:
        settings = flatten(run.read_config())
    except (yaml.YAMLError, AttributeError) as error:
        raise ValueError(f"{run.config} is damaged, no settings in YAML ({error}): restore it.") from None
    finished = _read_optional(run.finished, {})
    curves = read_curves(run.metrics)
    figure = finished.get("monitor") or next(
        (n for n in ("val/bits_per_frame", "val/error_levels") if n in curves), None
    )
    logged = [value for value in curves.get(figure or "", {}).get("values", []) if value is not None]
    starts = _read_optional(run.path / "environment.json", [])
    heard = sorted(path.name for path in run.samples.glob("epoch-*"))
    prompts = sorted(run.prompts.glob("*.c2"))
    frames = finished.get("frames")
    return {
        "name": name,
        "recipe": settings.get("recipe"),
        "is_finished": bool(finished),
        "figure": figure,
        "best": _finite(finished.get("best", min(logged, default=None))),
        "weights": finished.get("weights"),
        "frames": frames,
        "hours": frames / read_c2(prompts[0])[1].frames_per_second / 3600 if frames and prompts else None,
        "steps": finished.get("steps"),
        "start": starts[0] if starts else None,
        "starts": len(starts),
        "settings": {key: _as_yaml(value) for key, value in settings.items() if key not in OWN_SETTINGS},
        "baselines": _read_optional(run.baselines, {}),
        "curves": curves,
        "heard": heard,
        "embedded": pick_evenly(heard, epochs),
    }


# ---- clips


def read_sound(path: Path) -> tuple[np.ndarray, int]:
    """Return a sound file as int16 pcm (N,), and how many values a second it has.

    Raises:
        ValueError: it can't be read.
    """
    try:
        pcm, rate_hz = soundfile.read(path, dtype="int16")
    except soundfile.LibsndfileError as error:
        raise ValueError(f"{path} can't be read ({error.error_string}): move it away to report the rest.") from None
    return pcm, rate_hz


def read_part(source: Source, first_second: float, seconds: float) -> np.ndarray:
    """Return a part of a recording as int16 pcm (N,) at 8 kHz, shorter where the recording ends.

    Raises:
        ValueError: it can't be read, or holds codec frames and no sound.
    """
    if source.suffix in FRAME_SUFFIXES:
        raise ValueError(f"--sources {source.file} holds codec frames and no sound: leave it away.")
    first, end = (round(second * SAMPLE_RATE_HZ) for second in (first_second, first_second + seconds))
    blocks, read = [], 0
    try:
        with (
            tempfile.TemporaryDirectory() as scratch,
            open_source(source, Path(scratch)) as path,
            open_recording(path) as recording,
        ):
            for block in recording.pcm_blocks():
                blocks.append(block[max(0, first - read) : end - read])
                read += len(block)
                if read >= end:
                    break
    except BadRecording as bad:
        raise ValueError(f"--sources {source.file}: {bad}") from None
    return np.concatenate(blocks)


def describe_frames(frames: np.ndarray, mode: Mode) -> dict[str, Any]:
    """Return frames (T, F) as levels and, where the mode has them, in physical units; None for unvoiced pitch."""
    pitch, energy, lsp = pitch_hz(frames, mode), energy_db(frames, mode), lsp_hz(frames, mode)
    return {
        "mode": mode.name,
        "levels": frames.tolist(),
        "pitch_hz": None if pitch is None else [None if np.isnan(hz) else round(hz) for hz in pitch],
        "energy_db": None if energy is None else energy.round(1).tolist(),
        "lsp_hz": None if lsp is None else lsp.round().astype(int).tolist(),
    }


def describe_mode(mode: Mode) -> dict[str, Any]:
    """Return what the page has to know of a mode."""
    fields = [{"name": field.name, "group": field.group, "levels": field.levels} for field in mode.fields]
    return {"frames_per_second": mode.frames_per_second, "fields": fields}


def make_clip(
    sound: tuple[np.ndarray, int], frames: dict[str, Any] | None, name: str, detail: str, run: str | None
) -> dict[str, Any]:
    """Return a clip, ready for JSON; its sound as FLAC, the same values in half the bytes.

    Args:
        sound: int16 pcm (N,), and how many values a second it has.
        frames: what `describe_frames` says of it.
        name: who speaks.
        detail: what else the page says of it.
        run: the run that speaks; None for real speech.
    """
    pcm, rate_hz = sound
    flac = io.BytesIO()
    soundfile.write(flac, pcm, rate_hz, format="FLAC", subtype="PCM_16")
    audio = base64.b64encode(flac.getvalue()).decode()
    return {
        "name": name,
        "detail": detail,
        "run": run,
        "is_recording": False,
        "seconds": len(pcm) / rate_hz,
        "audio": audio,
        "frames": frames,
    }


def read_clip(path: Path, name: str, detail: str, run: str | None) -> dict[str, Any]:
    """Return a clip of `samples/`: its WAV, and the frames in the .c2 beside it, which older runs lack."""
    frames = path.with_suffix(".c2")
    described = describe_frames(*read_c2(frames)) if frames.is_file() else None
    return make_clip(read_sound(path), described, name, detail, run)


def add_recordings(rows: list[dict[str, Any]], paths: Iterable[Path]) -> None:
    """Put the recording itself before the codec's rendering in each row that has one, with the picture of its frames.

    Args:
        rows: what `gather_rows` gave.
        paths: where the recordings are, as `jobs.preprocess` takes them.

    Raises:
        FileNotFoundError: a path that is not there.
        ValueError: a recording is not among them, or can't be read.
    """
    paths = list(paths)
    by_name = {source.name: source for source in find_sources(paths).sources}
    for row in rows:
        coded = row["clips"][0]
        if coded["run"] is not None:
            continue
        if row["recording"] not in by_name:
            raise ValueError(
                f"--sources {' '.join(map(str, paths))}: no recording there is named {row['recording']}, as in the "
                "shards. Name the same files or folders as when they were preprocessed."
            )
        part = read_part(by_name[row["recording"]], row["second"], coded["seconds"])
        clip = make_clip((part, SAMPLE_RATE_HZ), coded["frames"], coded["name"], "the recording", None)
        row["clips"].insert(0, clip | {"is_recording": True})


def gather_rows(runs: Sequence[tuple[RunFolder, dict[str, Any]]]) -> list[dict[str, Any]]:
    """Return a row for each prompt: origin, length, and the clips that continue it, real speech first.

    Runs that continue the same place of the same recording share its row and its real speech.

    Args:
        runs: folders, and what `read_run` gave of them.
    """
    rows: dict[tuple[Any, ...], dict[str, Any]] = {}
    for run, about in runs:
        places = {place["prompt"]: place for place in _read_optional(run.prompts / "prompts.json", [])}
        for prompt in sorted(run.prompts.glob("*.c2"), key=lambda path: int(path.stem)):
            number = int(prompt.stem)
            frames, mode = read_c2(prompt)
            place = places.get(number, {"recording": about["name"], "first_frame": 0})
            # In little held-out speech several prompts may be of one place.
            key = (mode.name, number, place["recording"], place["first_frame"], number in places or run.path)
            row = rows.setdefault(
                key,
                {
                    "recording": place["recording"],
                    "second": place["first_frame"] / mode.frames_per_second,
                    "prompt_seconds": len(frames) / mode.frames_per_second,
                    "clips": [],
                },
            )
            real = run.samples / "real" / f"{number}.wav"
            if real.is_file() and not any(clip["run"] is None for clip in row["clips"]):
                row["clips"].insert(0, read_clip(real, "Real speech", "as coded", None))
            for epoch in about["embedded"]:
                path = run.samples / epoch / f"{number}.wav"
                if path.is_file():
                    detail = f"epoch {int(epoch.removeprefix('epoch-'))}"
                    row["clips"].append(read_clip(path, about["name"], detail, about["name"]))
    return [row for row in rows.values() if row["clips"]]


# ---- evaluations and sweeps


def gather_evaluations(runs: Sequence[tuple[RunFolder, dict[str, Any]]]) -> list[dict[str, Any]]:
    """Return a table for each held-out split: a row a baseline and a run, from what `babble.evaluate` wrote.

    It may lie in a run's folder under any name that ends in .json.
    """
    tables: dict[tuple[str, str], dict[str, Any]] = {}
    for run, about in runs:
        for path in sorted(run.path.glob("*.json")):
            found = _read_json(path)
            if not isinstance(found, dict) or not {"held_out", "baselines", "split"} <= found.keys():
                continue
            table = tables.setdefault(
                (found["shards"], found["split"]),
                {
                    "title": f"{found['shards']}, {found['split']} split, {found['hours']:.2f} hours",
                    "rows": [{"name": name, "run": None} | _figures(of) for name, of in found["baselines"].items()],
                    "sounds": [],
                },
            )
            checkpoint = Path(found["checkpoint"]).stem
            name = about["name"] + ("" if checkpoint == "best" else f", {checkpoint}")
            table["rows"].append({"name": name, "run": about["name"]} | _figures(found["held_out"]))
            if "speech" in found:
                table["sounds"].append({"name": name, "text": format_statistics(found["speech"]["statistics"])})
    return list(tables.values())


def _figures(of: dict[str, Any]) -> dict[str, Any]:
    figures = {name: _finite(value) for name, value in of.items() if isinstance(value, int | float)}
    return {"figures": figures, "intervals": {k: v for k, v in of.get("intervals", {}).items() if v}}


def read_sweep(sweep: SweepFolder) -> dict[str, Any]:
    """Return a sweep's configurations, best first, what its answer says beside the table, and its pictures.

    Raises:
        FileNotFoundError: no sweep is in this folder.
    """
    settings, axes = sweep.read_settings(), sweep.read_axes()
    configurations = [
        {
            "values": [str(value) for value in configuration.values.values()],
            "mean": _finite(configuration.mean),
            "lowest": _finite(min(configuration.figures, default=None)),
            "highest": _finite(max(configuration.figures, default=None)),
            "states": [row["state"] for row in configuration.rows],
            "weights": int(configuration.rows[0]["weights"] or 0),
            "frames": [int(row["frames"] or 0) for row in configuration.rows],
            "seconds": [float(row["seconds"] or 0) for row in configuration.rows],
        }
        for configuration in rank(sweep.read_rows(), axes)
    ]
    answer = sweep.path / "answer.txt"
    return {
        "name": sweep.path.resolve().name,
        "figure": settings["figure"],
        "axes": [axis.key for axis in axes],
        "configurations": configurations,
        "answer": answer.read_text().partition("\n\n")[2] if answer.is_file() else "",
        "pictures": [
            {"name": path.name, "png": base64.b64encode(path.read_bytes()).decode()}
            for path in sorted(sweep.path.glob("*.png"))
        ],
    }


# ---- the page


def name_folders(paths: Iterable[Path]) -> dict[Path, str]:
    """Return what to call each folder: its own name, or its path where others have that name too."""
    paths = list(dict.fromkeys(paths))
    names = [path.resolve().name for path in paths]
    return {path: name if names.count(name) == 1 else str(path) for path, name in zip(paths, names, strict=True)}


def gather_report(paths: Iterable[Path], epochs: int, sources: Sequence[Path] = ()) -> dict[str, Any]:
    """Return all that the page shows of runs and sweeps; a sweep's best run is shown with the runs.

    Raises:
        FileNotFoundError: a folder holds neither.
        ValueError: a file in one is damaged; the message says which. Or as `add_recordings`.
    """
    folders, sweeps = {}, []
    for path, name in name_folders(paths).items():
        sweep = SweepFolder(path)
        if not sweep.settings.is_file():
            folders[name] = RunFolder(path)
            continue
        sweeps.append(read_sweep(sweep))
        if sweep.best.config.is_file():
            folders[f"{name}/best"] = sweep.best
    runs = [(run, read_run(run, name, epochs)) for name, run in folders.items()]
    rows = gather_rows(runs)
    if sources:
        add_recordings(rows, sources)
    modes = {clip["frames"]["mode"] for row in rows for clip in row["clips"] if clip["frames"]}
    return {
        "written": datetime.now().astimezone().strftime("%Y-%m-%d %H:%M"),
        "runs": [about for _, about in runs],
        "modes": {name: describe_mode(MODES[name]) for name in sorted(modes)},
        "rows": rows,
        "evaluations": gather_evaluations(runs),
        "sweeps": sweeps,
    }


def build_page(report: dict[str, Any]) -> str:
    """Return the page of what `gather_report` gave: HTML that asks no network for anything."""
    names = [about["name"] for about in (*report["sweeps"], *report["runs"])]
    style = (PAGE / "uPlot.min.css").read_text() + (PAGE / "page.css").read_text()
    library, script = (PAGE / "uPlot.iife.min.js").read_text(), (PAGE / "page.js").read_text()
    parts = {
        "policy": f"default-src 'none'; script-src {_source(library)} {_source(script)}; style-src {_source(style)}; "
        "img-src data:; media-src blob:; base-uri 'none'; form-action 'none'",
        "title": html.escape(f"babble: {', '.join(names)}"),
        "style": style,
        # No text in the data can end the element that it stands in.
        "data": json.dumps(report, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c"),
        "library": library,
        "script": script,
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda place: parts[place[1]], (PAGE / "page.html").read_text())


def _source(text: str) -> str:
    """Return how a Content-Security-Policy names an inline script or style: by its hash."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def write_report(
    paths: Iterable[Path], out: Path, epochs: int = ReportConfig.epochs, sources: Sequence[Path] = ()
) -> dict[str, Any]:
    """Write the page of runs and sweeps, whole or not at all, and return what it shows.

    Raises:
        FileNotFoundError, ValueError: as `gather_report`.
    """
    report = gather_report(paths, epochs, sources)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(out, build_page(report).encode())
    return report


def _work(config: ReportConfig) -> None:
    report = write_report(config.runs, config.out, config.epochs, config.sources)
    clips = sum(len(row["clips"]) for row in report["rows"])
    names = ", ".join(about["name"] for about in (*report["sweeps"], *report["runs"]))
    print(f"{config.out}: {names}; clips: {clips}; {config.out.stat().st_size / 1e6:.1f} MB. Open it in a browser.")


def main() -> None:
    """Run `python -m babble.report`."""
    run_command(ReportConfig, _work, "python -m babble.report", "runs")


if __name__ == "__main__":
    main()
