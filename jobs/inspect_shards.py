"""Check and describe a folder of shards.

    babble inspect shards/tale [--csv frames.csv] [--histogram-csv histogram.csv]

In: a folder written by `babble preprocess` or `babble tokens`. Steps:

1. Every tar exists, and its hash is the one in the manifest.
2. Every segment is complete, its levels are legal, and the segments together are the recordings of the manifest.
3. No frame of a recording is in two splits, under its own name or another.
4. Hours, fields and histograms are printed, and optionally written as CSV.

Out: exit code 0 if the folder is intact, or 1 with every problem named.
"""

import csv
import hashlib
import tarfile
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from babble.cli import CommandError, run_command
from babble.codec.frames import TOKENS, Mode, has_disordered_lsps, is_voiced
from babble.codec.token_sequences import name_frame
from babble.data.shards import SHIFTED, SPLITS, Manifest, Segment, ShardFacts, read_manifest, read_segments
from babble.files import check_writable

COMMAND = "babble inspect"
# Share of frames at the codec's highest energy above which a recording is reported as too loud: twice the share in the
# narration of 2017.
TOO_LOUD = 0.025
BARS = "▁▂▃▄▅▆▇█"
HISTOGRAM_COLUMNS = 16


@dataclass(frozen=True)
class InspectConfig:
    """Check and describe a folder of shards.

    Attributes:
        shards: The folder.
        csv: File to write all frames to, one per row: split, recording, frame, and its fields.
        histogram_csv: File to write the histograms to, one level per row: split, field, level, frames.
    """

    shards: Path | None = None
    csv: Path | None = None
    histogram_csv: Path | None = None

    def __post_init__(self) -> None:
        """Validate that a folder is named, and that the files differ."""
        if self.shards is None:
            raise ValueError(f"name the folder of shards: {COMMAND} shards/NAME")
        if self.csv and self.histogram_csv and self.csv.resolve() == self.histogram_csv.resolve():
            raise ValueError(f"--csv and --histogram-csv are both {self.csv}: name two different files.")


class SplitStatistics:
    """Statistics of the frames of one split.

    Attributes:
        histogram: frames by field and level, int64 (F, V), V being the most levels of any field.
        changes: sums of the absolute differences between consecutive frames, float64 (F,).
        num_changes: number of these differences per field.
        frames: number of frames.
        voiced: number of voiced frames; None for tokens.
        disordered: number of frames whose LSPs are out of order; None in modes without LSPs.
    """

    def __init__(self, mode: Mode) -> None:
        self._mode = mode
        self.histogram = np.zeros((mode.num_fields, int(mode.levels.max())), np.int64)
        self.changes = np.zeros(mode.num_fields)
        self.num_changes = self.frames = 0
        self.voiced: int | None = None
        self.disordered: int | None = None

    def add(self, frames_TF: np.ndarray, previous_F: np.ndarray | None) -> None:
        """Add frames, with the frame before the first one if it is of the same recording."""
        self.frames += len(frames_TF)
        for f in range(self._mode.num_fields):
            self.histogram[f] += np.bincount(frames_TF[:, f], minlength=self.histogram.shape[1])
        if self._mode != TOKENS:
            self.voiced = (self.voiced or 0) + int(is_voiced(frames_TF, self._mode).sum())
            disordered_T = has_disordered_lsps(frames_TF, self._mode)
            if disordered_T is not None:
                self.disordered = (self.disordered or 0) + int(disordered_T.sum())
        if previous_F is not None:
            frames_TF = np.concatenate([previous_F[None], frames_TF])
        self.changes += np.abs(np.diff(frames_TF.astype(np.int64), axis=0)).sum(axis=0)
        self.num_changes += max(0, len(frames_TF) - 1)


@dataclass
class Inspection:
    """The result of an inspection: statistics by split, and everything that is wrong with the folder."""

    splits: dict[str, SplitStatistics] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def inspect_shards(config: InspectConfig) -> None:
    """Print a description of a folder and what is wrong with it.

        inspect_shards(InspectConfig(Path("shards/tale")))

    Raises:
        FileNotFoundError, ValueError: it is not a folder of shards.
        OSError: a CSV can't be written.
        CommandError: the folder is damaged.
    """
    assert config.shards is not None
    manifest = read_manifest(config.shards)
    for path, flag in ((config.csv, "--csv"), (config.histogram_csv, "--histogram-csv")):
        if path:
            check_writable(path, flag)
            path.parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        frames_csv = None
        if config.csv:
            frames_csv = csv.writer(stack.enter_context(config.csv.open("w", newline="", encoding="utf-8")))
            frames_csv.writerow(["split", "recording", "frame", *(f.name for f in manifest.mode.fields)])
        inspection = check_folder(config.shards, manifest, frames_csv)
    print("\n".join(describe(config.shards, manifest, inspection)))
    if config.histogram_csv:
        write_histogram(config.histogram_csv, manifest.mode, inspection)
    if inspection.problems:
        listed = "\n  ".join(inspection.problems)
        raise CommandError(f"{config.shards} is damaged: copy it again, or preprocess to a new folder:\n  {listed}")


def check_folder(folder: Path, manifest: Manifest, frames_csv: Any = None) -> Inspection:
    """Return statistics of a folder's frames and every problem with it.

    Args:
        folder: the folder.
        manifest: its manifest.
        frames_csv: a csv.writer for every frame, or None.
    """
    inspection = Inspection()
    known = {shard.name for shard in manifest.shards}
    for path in sorted(folder.glob("*.tar")):
        if path.name not in known:
            inspection.problems.append(f"{path.name} is not in the manifest")
    for split in (*SPLITS, SHIFTED):
        if any(shard.split == split for shard in manifest.shards):
            _check_split(folder, manifest, split, inspection, frames_csv)
    inspection.problems += _find_overlaps(manifest.recordings)
    return inspection


def _check_split(folder: Path, manifest: Manifest, split: str, inspection: Inspection, frames_csv: Any) -> None:
    statistics = inspection.splits[split] = SplitStatistics(manifest.mode)
    damaged: list[str] = []
    # Consecutive frames of a recording, as the manifest lists them: name, first frame, number of frames.
    found: list[tuple[str, int, int]] = []
    last: Segment | None = None
    for segment in _read_split(folder, manifest, split, damaged, inspection.problems):
        previous_F = None
        if last and (segment.recording, segment.first_frame) == (last.recording, last.first_frame + len(last.frames)):
            previous_F = last.frames[-1]
            found[-1] = (*found[-1][:2], found[-1][2] + len(segment.frames))
        else:
            found.append((segment.recording, segment.first_frame, len(segment.frames)))
        statistics.add(segment.frames, previous_F)
        last = segment
        if frames_csv:
            for t, levels in enumerate(segment.frames.tolist(), segment.first_frame):
                frames_csv.writerow([split, segment.recording, t, *levels])
    inspection.problems += damaged
    expected = [(r["name"], r["first_frame"], r["frames"]) for r in manifest.of_split(split)]
    # A damaged shard has been reported already, and its frames are missing here.
    if found != expected and not damaged:
        counts = (f"{len(found)} recordings", f"{len(expected)}")
        first = next((pair for pair in zip(found, expected, strict=False) if pair[0] != pair[1]), counts)
        inspection.problems.append(
            f"{split}: recordings differ from the manifest: found {first[0]}, expected {first[1]}"
        )


def _read_split(
    folder: Path, manifest: Manifest, split: str, damaged: list[str], problems: list[str]
) -> Iterator[Segment]:
    """Yield the segments of a split; append unreadable shards to `damaged` and wrong counts to `problems`."""
    for shard in manifest.shards:
        if shard.split != split:
            continue
        entries = frames = 0
        try:
            for segment in _read_shard(folder, shard, manifest.mode):
                entries += 1
                frames += len(segment.frames)
                yield segment
        except (ValueError, OSError, KeyError, tarfile.TarError) as error:
            damaged.append(str(error))
            continue
        if (entries, frames) != (shard.entries, shard.frames):
            problems.append(
                f"{shard.name} has {entries} entries and {frames} frames, the manifest has {shard.entries} and "
                f"{shard.frames}"
            )


def _read_shard(folder: Path, shard: ShardFacts, mode: Mode) -> Iterator[Segment]:
    with (folder / shard.name).open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    if sha256 != shard.sha256:
        raise ValueError(f"{shard.name} has the hash {sha256[:12]}..., the manifest has {shard.sha256[:12]}...")
    yield from read_segments([folder / shard.name], mode)


def _find_overlaps(recordings: list[dict[str, Any]]) -> list[str]:
    """Return a line for frames that occur twice: overlapping parts of a recording, or one file under two names."""
    problems = []
    parts: dict[str, list[tuple[int, int, str]]] = defaultdict(list)
    names: dict[str, str] = {}
    for recording in recordings:
        first = recording["first_frame"]
        parts[recording["name"]].append((first, first + recording["frames"], recording["split"]))
        sha256 = recording.get("sha256")
        if sha256 and names.setdefault(sha256, recording["name"]) != recording["name"]:
            problems.append(f"recordings {names[sha256]} and {recording['name']} are the same file")
    for name, intervals in parts.items():
        for (_, end, before), (start, _, after) in pairwise(sorted(intervals)):
            if start < end:
                problems.append(f"recording {name}: frames {start} to {end - 1} are in {before} and again in {after}")
    return problems


def entropy_bits(histogram: np.ndarray) -> float:
    """Return the entropy of a histogram in bits: the unigram baseline of a field."""
    shares = histogram[histogram > 0] / histogram.sum()
    return float(-(shares * np.log2(shares)).sum())


def _draw_histogram(counts: np.ndarray) -> str:
    num_columns = min(HISTOGRAM_COLUMNS, len(counts))
    columns = counts.reshape(num_columns, -1).sum(axis=1)
    heights = np.ceil(columns * (len(BARS) - 1) / max(1, columns.max())).astype(int)
    return "".join(BARS[height] if count else " " for height, count in zip(heights, columns, strict=True))


def describe(folder: Path, manifest: Manifest, inspection: Inspection) -> list[str]:
    """Return the description of a folder as lines of text."""
    mode = manifest.mode
    # Tokens are of different lengths.
    unit, length = name_frame(mode.name), "" if mode == TOKENS else f" of {mode.frame_ms} ms"
    lines = [f"{folder}: mode {mode.name}, {mode.num_fields} fields, {mode.bits} bits per {unit}{length}"]
    for split, statistics in inspection.splits.items():
        names = {recording["name"] for recording in manifest.of_split(split)}
        frames = max(1, statistics.frames)
        hours = "" if mode == TOKENS else f"{statistics.frames / mode.frames_per_second / 3600:8.3f} h, "
        voiced = "" if statistics.voiced is None else f", {statistics.voiced / frames:.1%} voiced"
        order = "" if statistics.disordered is None else f", {statistics.disordered / frames:.3%} LSPs out of order"
        lines.append(f"{split:<10} {hours}{statistics.frames:,} {unit}s, {len(names)} recordings{voiced}{order}")
    described = [statistics for split, statistics in inspection.splits.items() if split in SPLITS]
    if any(statistics.frames for statistics in described):
        lines += _describe_fields(mode, described)
    for recording in manifest.recordings:
        if recording["first_frame"] == 0 and recording.get("energy_at_ceiling", 0) > TOO_LOUD:
            lines.append(
                f"too loud: {recording['name']} has {recording['energy_at_ceiling']:.1%} of its frames at the codec's "
                "highest energy; try --gain-db -6"
            )
    if manifest.failures:
        lines.append(f"not in these shards: {len(manifest.failures)} recordings that failed in preprocessing")
    if manifest.duplicates:
        lines.append(f"left out: {len(manifest.duplicates)} recordings that repeat others")
        lines += [f"  {duplicate['name']} repeats {duplicate['of']}" for duplicate in manifest.duplicates]
    return lines


def _describe_fields(mode: Mode, splits: list[SplitStatistics]) -> list[str]:
    """Return a table with a line per field, over all splits."""
    histogram_FV = np.sum([statistics.histogram for statistics in splits], axis=0)
    changes_F = np.sum([statistics.changes for statistics in splits], axis=0)
    num_changes = max(1, sum(statistics.num_changes for statistics in splits))
    lines = ["field     levels  used   min   mean   max  change  entropy  histogram"]
    total_bits = 0.0
    for f, field_ in enumerate(mode.fields):
        counts_V = histogram_FV[f, : field_.levels]
        used = np.flatnonzero(counts_V)
        bits = entropy_bits(counts_V)
        total_bits += bits
        # The levels of a label have no distance, so neither their mean nor their change means anything.
        is_label = field_.kind == "label"
        mean = "     -" if is_label else f"{float(counts_V @ np.arange(len(counts_V)) / counts_V.sum()):6.1f}"
        change = "     -" if is_label else f"{changes_F[f] / num_changes:6.2f}"
        lines.append(
            f"{field_.name:<8} {field_.levels:7d} {len(used):5d} {used[0]:5d} {mean} {used[-1]:5d}  {change} "
            f"{bits:7.2f}   {_draw_histogram(counts_V)}"
        )
    return [*lines, f"sum of the entropies: {total_bits:.2f} of {mode.bits} bits"]


def write_histogram(path: Path, mode: Mode, inspection: Inspection) -> None:
    """Write the number of frames by split, field and level as CSV."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["split", "field", "level", "frames"])
        for split, statistics in inspection.splits.items():
            for f, field_ in enumerate(mode.fields):
                for level in range(field_.levels):
                    writer.writerow([split, field_.name, level, int(statistics.histogram[f, level])])


if __name__ == "__main__":
    run_command(InspectConfig, inspect_shards, COMMAND, positional="shards")
