"""What the folders of runs and sweeps hold, as plain values for JSON.

1. `read_run`: settings, curves, best metric, baselines. What a run does not have yet is None or empty.
2. `gather_evaluations`: one table per held-out split.
3. `read_sweep`: configurations, best first, with text and pictures of the answer.
4. `gather_report` brings all of it together with the clips of `babble.reporting.clips`.
"""

import base64
import math
from collections.abc import Iterable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from babble.cli import flatten
from babble.codec.codec2 import read_c2
from babble.codec.frames import MODES
from babble.evaluation.tables import format_statistics
from babble.files import read_json, read_json_lines
from babble.reporting.clips import add_recordings, describe_mode, epoch_folder, gather_rows
from babble.run_folder import RunFolder
from babble.sweeps.folder import SweepFolder
from babble.sweeps.ranking import rank

# A chart has fewer pixels than this.
MAX_POINTS = 2000
# Names and folders, not settings of the training.
OWN_SETTINGS = ("name", "runs")


def _read_optional(path: Path, default: Any) -> Any:
    return read_json(path) if path.is_file() else default


def _to_number(value: Any) -> float | None:
    """Return a number as strict JSON can hold it: None if it is missing, empty or not finite."""
    number = float(value) if value not in ("", None) else math.nan
    return number if math.isfinite(number) else None


def _to_yaml(value: Any) -> str:
    return yaml.safe_dump(value, default_flow_style=True, width=math.inf).removesuffix("\n").removesuffix("\n...")


def _encode_png(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()


def read_curves(path: Path) -> dict[str, dict[str, list[Any]]]:
    """Return the curves of a metrics.jsonl: name -> {"steps": [...], "values": [...]}; empty if it does not exist.

    At most `MAX_POINTS` per curve, evenly spread; None for values that are not finite.

    Raises:
        ValueError: a line is damaged; the message names file and line.
    """
    curves: dict[str, dict[str, list[Any]]] = {}
    for number, row in enumerate(read_json_lines(path), 1):
        try:
            step = int(row.pop("step"))
            values = {name: _to_number(value) for name, value in row.items()}
        except (KeyError, TypeError, ValueError):
            raise ValueError(f"{path}: line {number} is damaged, expected a step and numbers: remove it.") from None
        for name, value in values.items():
            curve = curves.setdefault(name, {"steps": [], "values": []})
            curve["steps"].append(step)
            curve["values"].append(value)
    return {name: {key: pick_evenly(points, MAX_POINTS) for key, points in c.items()} for name, c in curves.items()}


def pick_evenly(items: list[Any], most: int) -> list[Any]:
    """Return at most `most` items, evenly spread; the last is always among them, the first if `most` is above 1."""
    if len(items) <= most:
        return items
    indices = np.linspace(len(items) - 1, 0, most).round().astype(int)
    return [items[n] for n in sorted(indices)]


def read_run(run: RunFolder, name: str, epochs: int) -> dict[str, Any]:
    """Return what a run's folder holds, ready for JSON.

    Args:
        run: the folder.
        name: what the page calls the run.
        epochs: from how many epochs samples are shown.

    Raises:
        FileNotFoundError: the folder is not a run.
        ValueError: a file is damaged; the message names it.
    """
    try:
        settings = flatten(run.read_config())
    except (yaml.YAMLError, AttributeError) as error:
        raise ValueError(f"{run.config} is damaged, expected settings in YAML ({error}): restore it.") from None
    finished = _read_optional(run.finished, {})
    curves = read_curves(run.metrics)
    monitor = finished.get("monitor") or next(
        (metric for metric in ("val/bits_per_frame", "val/error_levels") if metric in curves), None
    )
    logged = [value for value in curves.get(monitor or "", {}).get("values", []) if value is not None]
    starts = _read_optional(run.path / "environment.json", [])
    sampled_names = (path.name.removeprefix("epoch-") for path in run.samples.glob("epoch-*"))
    # Not a user's copy of such a folder.
    sampled = sorted(int(name) for name in sampled_names if name.isdecimal())
    prompts = sorted(run.prompts.glob("*.c2"))
    frames = finished.get("frames")
    return {
        "name": name,
        "recipe": settings.get("recipe"),
        "is_finished": bool(finished),
        "monitor": monitor,
        "best": _to_number(finished.get("best", min(logged, default=None))),
        "weights": finished.get("weights"),
        "frames": frames,
        "hours": frames / read_c2(prompts[0])[1].frames_per_second / 3600 if frames and prompts else None,
        "steps": finished.get("steps"),
        "start": starts[0] if starts else None,
        "starts": len(starts),
        "settings": {key: _to_yaml(value) for key, value in settings.items() if key not in OWN_SETTINGS},
        "baselines": _read_optional(run.baselines, {}),
        "curves": curves,
        "sampled_epochs": sampled,
        "shown_epochs": pick_evenly(sampled, epochs),
    }


def gather_progressions(runs: Sequence[tuple[RunFolder, dict[str, Any]]]) -> list[dict[str, Any]]:
    """Return the progression plots of the held-out speech, once per shards, and of each run's last samples."""
    real: dict[str, Path] = {}
    babble: list[tuple[str, str, Path]] = []
    for run, facts in runs:
        path = run.samples / "real" / "progression.png"
        if path.is_file():
            real.setdefault(facts["settings"].get("data.shards", ""), path)
        for epoch in facts["shown_epochs"][-1:]:
            path = epoch_folder(run, epoch) / "progression.png"
            if path.is_file():
                babble.append((f"{facts['name']}, epoch {epoch}", facts["name"], path))
    titles = {shards: "Real speech, held out" + (f", {shards}" if len(real) > 1 else "") for shards in real}
    return [
        *({"title": titles[shards], "run": None, "png": _encode_png(path)} for shards, path in real.items()),
        *({"title": title, "run": run, "png": _encode_png(path)} for title, run, path in babble),
    ]


def gather_evaluations(runs: Sequence[tuple[RunFolder, dict[str, Any]]]) -> list[dict[str, Any]]:
    """Return a table per held-out split, a row per baseline and run: what `babble evaluate --json` wrote.

    The file may have any name that ends in .json and must lie in the run's folder.
    """
    tables: dict[tuple[str, str], dict[str, Any]] = {}
    for run, facts in runs:
        for path in sorted(run.path.glob("*.json")):
            found = read_json(path)
            if not isinstance(found, dict) or not {"held_out", "baselines", "split"} <= found.keys():
                continue
            table = tables.setdefault(
                (found["shards"], found["split"]),
                {
                    "title": f"{found['shards']}, {found['split']} split, {found['hours']:.2f} hours",
                    "rows": [
                        {"name": name, "run": None} | _pick_metrics(values)
                        for name, values in found["baselines"].items()
                    ],
                    "statistics": [],
                },
            )
            checkpoint = Path(found["checkpoint"]).stem
            name = facts["name"] + ("" if checkpoint == "best" else f", {checkpoint}")
            table["rows"].append({"name": name, "run": facts["name"]} | _pick_metrics(found["held_out"]))
            if "speech" in found:
                table["statistics"].append({"name": name, "text": format_statistics(found["speech"]["statistics"])})
    return list(tables.values())


def _pick_metrics(found: dict[str, Any]) -> dict[str, Any]:
    metrics = {name: _to_number(value) for name, value in found.items() if isinstance(value, int | float)}
    return {"metrics": metrics, "intervals": {k: v for k, v in found.get("intervals", {}).items() if v}}


def read_sweep(sweep: SweepFolder) -> dict[str, Any]:
    """Return a sweep's configurations, best first, the text of its answer below the table, and its pictures.

    Raises:
        FileNotFoundError: the folder is not a sweep.
    """
    settings, axes = sweep.read_settings(), sweep.read_axes()
    configurations = [
        {
            "values": [str(value) for value in configuration.values.values()],
            "mean": _to_number(configuration.mean),
            "lowest": _to_number(min(configuration.results, default=None)),
            "highest": _to_number(max(configuration.results, default=None)),
            "states": [row.state for row in configuration.rows],
            "weights": configuration.rows[0].weights,
            "frames": [row.frames for row in configuration.rows],
            "seconds": [row.seconds for row in configuration.rows],
        }
        for configuration in rank(sweep.read_rows(), axes)
    ]
    answer = sweep.path / "answer.txt"
    return {
        "name": sweep.path.resolve().name,
        "monitor": settings["monitor"],
        "axes": [axis.key for axis in axes],
        "configurations": configurations,
        "answer": answer.read_text().partition("\n\n")[2] if answer.is_file() else "",
        "pictures": [{"name": path.name, "png": _encode_png(path)} for path in sorted(sweep.path.glob("*.png"))],
    }


def name_folders(paths: Iterable[Path]) -> dict[Path, str]:
    """Return a label per folder: its name, or its path if several folders have that name."""
    paths = list(dict.fromkeys(paths))
    names = [path.resolve().name for path in paths]
    return {path: name if names.count(name) == 1 else str(path) for path, name in zip(paths, names, strict=True)}


def gather_report(paths: Iterable[Path], epochs: int, sources: Sequence[Path] = ()) -> dict[str, Any]:
    """Return all that the page shows of runs and sweeps; a sweep's best run is shown with the runs.

    Args:
        paths: folders of runs and sweeps.
        epochs: from how many epochs of each run samples are shown.
        sources: the original recordings, as `babble preprocess` takes them.

    Raises:
        FileNotFoundError: a folder is neither a run nor a sweep, or a source does not exist.
        ValueError: a file is damaged, or a recording is missing; the message names it.
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
        "runs": [facts for _, facts in runs],
        "modes": {name: describe_mode(MODES[name]) for name in sorted(modes)},
        "rows": rows,
        "progressions": gather_progressions(runs),
        "evaluations": gather_evaluations(runs),
        "sweeps": sweeps,
    }
