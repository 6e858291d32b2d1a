"""Check and describe a folder of shards.

    python -m jobs.inspect_shards shards/tale [--csv frames.csv] [--histogram_csv histogram.csv]

In: a folder that jobs.preprocess made. Steps:

1. every tar is there, and its hash is the manifest's;
2. every segment is whole, its levels are legal, it follows on the one before, and all together are what the manifest
   tells of;
3. no frame of a recording is in two splits, under its own name or another's;
4. hours, fields and their histograms are printed, and written as CSV where asked for.

Out: exit code 0 if all is well, 1 with every problem named if not.
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
from babble.codec.frames import Mode, has_disordered_lsps, is_voiced
from babble.data.shards import SPLITS, Manifest, Segment, ShardFacts, read_manifest, read_segments

COMMAND = "python -m jobs.inspect_shards"
# Recordings are told of that saturate the codec more than twice as often as the narration of 2017 did.
TOO_LOUD = 0.025
BARS = "▁▂▃▄▅▆▇█"
HISTOGRAM_COLUMNS = 16


@dataclass(frozen=True)
class InspectConfig:
    """Check and describe a folder of shards.

    Attributes:
        shards: The folder.
        csv: File to write every frame to, one row each: split, recording, frame, and its fields.
        histogram_csv: File to write to how often each level of each field is there: split, field, level, frames.
    """

    shards: Path | None = None
    csv: Path | None = None
    histogram_csv: Path | None = None

    def __post_init__(self) -> None:
        """Refuse a call without a folder."""
        if self.shards is None:
            raise ValueError(f"name the folder of shards: {COMMAND} shards/NAME")


@dataclass
class SplitFacts:
    """What the frames of one split add up to.

    Attributes:
        histogram: frames by field and level, int64 (F, most levels of a field).
        changes: sum of absolute changes from frame to frame, float64 (F,), over `num_changes` frames.
        voiced: frames that are voiced.
        disordered: frames whose LSPs are out of order, None as long as no frame can tell.
    """

    histogram: np.ndarray
    changes: np.ndarray
    num_changes: int = 0
    frames: int = 0
    voiced: int = 0
    disordered: int | None = None


@dataclass
class Inspection:
    """What was found in a folder: facts by split, and everything that is wrong with it."""

    splits: dict[str, SplitFacts] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def inspect_shards(config: InspectConfig) -> None:
    """Print what a folder holds and what is wrong with it.

    Raises:
        FileNotFoundError, ValueError: no folder of shards.
        CommandError: it is damaged.
    """
    assert config.shards is not None
    manifest = read_manifest(config.shards)
    with ExitStack() as stack:
        frames_csv = None
        if config.csv:
            frames_csv = csv.writer(stack.enter_context(config.csv.open("w", newline="")))
            frames_csv.writerow(["split", "recording", "frame", *(f.name for f in manifest.mode.fields)])
        inspection = check_folder(config.shards, manifest, frames_csv)
    print("\n".join(describe(config.shards, manifest, inspection)))
    if config.histogram_csv:
        write_histogram(config.histogram_csv, manifest.mode, inspection)
    if inspection.problems:
        listed = "\n  ".join(inspection.problems)
        raise CommandError(f"{config.shards} is damaged, preprocess again or copy it again:\n  {listed}")


def check_folder(folder: Path, manifest: Manifest, frames_csv: Any = None) -> Inspection:
    """Return the facts of a folder's frames and every problem with it.

    Args:
        frames_csv: a csv.writer that takes every frame, or None.
    """
    found = Inspection()
    named = {shard.name for shard in manifest.shards}
    for path in sorted(folder.glob("*.tar")):
        if path.name not in named:
            found.problems.append(f"{path.name} is not in the manifest")
    for split in SPLITS:
        shards = [shard for shard in manifest.shards if shard.split == split]
        if shards:
            _check_split(folder, manifest, split, shards, found, frames_csv)
    found.problems += _check_overlap(manifest.recordings)
    return found


def _check_split(
    folder: Path, manifest: Manifest, split: str, shards: list[ShardFacts], found: Inspection, frames_csv: Any
) -> None:
    mode = manifest.mode
    facts = SplitFacts(np.zeros((mode.num_fields, int(mode.levels.max())), np.int64), np.zeros(mode.num_fields))
    found.splits[split] = facts
    joined: list[tuple[str, int, int]] = []
    last: Segment | None = None
    is_damaged = False
    for shard in shards:
        entries = frames = 0
        try:
            for segment in _read_shard(folder, shard, mode):
                entries += 1
                frames += len(segment.frames)
                is_next = last is not None and last.recording == segment.recording
                if last is not None and is_next and last.first_frame + len(last.frames) == segment.first_frame:
                    joined[-1] = (segment.recording, joined[-1][1], joined[-1][2] + len(segment.frames))
                else:
                    joined.append((segment.recording, segment.first_frame, len(segment.frames)))
                    last = None
                _add(facts, segment, last, mode)
                last = segment
                if frames_csv:
                    for t, levels in enumerate(segment.frames.tolist(), segment.first_frame):
                        frames_csv.writerow([split, segment.recording, t, *levels])
        except (ValueError, OSError, KeyError, tarfile.TarError) as error:
            found.problems.append(str(error))
            is_damaged = True
            continue
        if (entries, frames) != (shard.entries, shard.frames):
            found.problems.append(
                f"{shard.name} has {entries} entries and {frames} frames, the manifest says {shard.entries} and "
                f"{shard.frames}"
            )
    promised = [(r["name"], r["first_frame"], r["frames"]) for r in manifest.recordings if r["split"] == split]
    # What a damaged shard lacks would be told of twice.
    if joined != promised and not is_damaged:
        first = next(
            (pair for pair in zip(joined, promised, strict=False) if pair[0] != pair[1]),
            (f"{len(joined)} runs of frames", f"{len(promised)} recordings"),
        )
        found.problems.append(f"{split}: recordings are not those of the manifest: found {first[0]}, not {first[1]}")


def _read_shard(folder: Path, shard: ShardFacts, mode: Mode) -> Iterator[Segment]:
    with (folder / shard.name).open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    if sha256 != shard.sha256:
        raise ValueError(f"{shard.name} has the hash {sha256[:12]}..., the manifest says {shard.sha256[:12]}...")
    yield from read_segments([folder / shard.name], mode)


def _add(facts: SplitFacts, segment: Segment, last: Segment | None, mode: Mode) -> None:
    frames = segment.frames
    facts.frames += len(frames)
    facts.voiced += int(is_voiced(frames, mode).sum())
    for f in range(mode.num_fields):
        counts = np.bincount(frames[:, f], minlength=facts.histogram.shape[1])
        facts.histogram[f] += counts
    disordered = has_disordered_lsps(frames, mode)
    if disordered is not None:
        facts.disordered = (facts.disordered or 0) + int(disordered.sum())
    following = frames if last is None else np.concatenate([last.frames[-1:], frames])
    facts.changes += np.abs(np.diff(following.astype(np.int64), axis=0)).sum(axis=0)
    facts.num_changes += max(0, len(following) - 1)


def _check_overlap(recordings: list[dict[str, Any]]) -> list[str]:
    """Return where frames are there twice: a recording's parts that overlap, or one file under two names."""
    problems = []
    parts: dict[str, list[tuple[int, int, str]]] = defaultdict(list)
    names: dict[str, str] = {}
    for recording in recordings:
        first = recording["first_frame"]
        parts[recording["name"]].append((first, first + recording["frames"], recording["split"]))
        sha256 = recording.get("sha256")
        if sha256 and names.setdefault(sha256, recording["name"]) != recording["name"]:
            problems.append(f"recordings {names[sha256]} and {recording['name']} are one and the same file")
    for name, runs in parts.items():
        runs.sort()
        for (_, end, before), (start, _, after) in pairwise(runs):
            if start < end:
                problems.append(f"recording {name}: frames {start} to {end - 1} are in {before} and again in {after}")
    return problems


def entropy_bits(histogram: np.ndarray) -> float:
    """Return the entropy of a histogram in bits: what a field costs that is known by its frequencies only."""
    shares = histogram[histogram > 0] / histogram.sum()
    return float(-(shares * np.log2(shares)).sum())


def _draw(histogram: np.ndarray) -> str:
    num_columns = min(HISTOGRAM_COLUMNS, len(histogram))
    columns = histogram.reshape(num_columns, -1).sum(axis=1)
    heights = np.ceil(columns * (len(BARS) - 1) / max(1, columns.max())).astype(int)
    return "".join(BARS[height] if count else " " for height, count in zip(heights, columns, strict=True))


def describe(folder: Path, manifest: Manifest, found: Inspection) -> list[str]:
    """Return the description of a folder as lines of text."""
    mode = manifest.mode
    lines = [f"{folder}: mode {mode.name}, {mode.num_fields} fields and {mode.bits} bits a frame of {mode.frame_ms} ms"]
    for split, facts in found.splits.items():
        names = {r["name"] for r in manifest.recordings if r["split"] == split}
        hours = facts.frames / mode.frames_per_second / 3600
        order = "" if facts.disordered is None else f", {facts.disordered / max(1, facts.frames):.3%} LSPs out of order"
        lines.append(
            f"{split:<10} {hours:8.3f} h, {facts.frames:,} frames, {len(names)} recordings, "
            f"{facts.voiced / max(1, facts.frames):.1%} voiced{order}"
        )
    if not found.splits:
        return lines
    everything = np.sum([facts.histogram for facts in found.splits.values()], axis=0)
    changes = np.sum([facts.changes for facts in found.splits.values()], axis=0)
    num_changes = max(1, sum(facts.num_changes for facts in found.splits.values()))
    if not everything.any():
        return lines
    lines.append("field     levels  used   min   mean   max  change  entropy  histogram")
    total_bits = 0.0
    for f, field_ in enumerate(mode.fields):
        counts = everything[f, : field_.levels]
        used = np.flatnonzero(counts)
        bits = entropy_bits(counts)
        total_bits += bits
        # A label's levels have no distances: neither their mean nor their change means anything.
        is_label = field_.kind == "label"
        mean = "     -" if is_label else f"{float(counts @ np.arange(len(counts)) / counts.sum()):6.1f}"
        change = "     -" if is_label else f"{changes[f] / num_changes:6.2f}"
        lines.append(
            f"{field_.name:<8} {field_.levels:7d} {len(used):5d} {used[0]:5d} {mean} {used[-1]:5d}  {change} "
            f"{bits:7.2f}   {_draw(counts)}"
        )
    lines.append(f"sum of the entropies: {total_bits:.2f} of {mode.bits} bits")
    for recording in manifest.recordings:
        if recording["first_frame"] == 0 and recording.get("energy_at_ceiling", 0) > TOO_LOUD:
            lines.append(
                f"too loud: {recording['name']} has {recording['energy_at_ceiling']:.1%} of its frames at the highest "
                "energy that the codec has; try --gain_db -6"
            )
    if manifest.failures:
        lines.append(f"left out when it was made: {len(manifest.failures)} recordings that failed")
    return lines


def write_histogram(path: Path, mode: Mode, found: Inspection) -> None:
    """Write how often each level of each field is there, as CSV with a row for split, field, level and frames."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["split", "field", "level", "frames"])
        for split, facts in found.splits.items():
            for f, field_ in enumerate(mode.fields):
                for level in range(field_.levels):
                    writer.writerow([split, field_.name, level, int(facts.histogram[f, level])])


if __name__ == "__main__":
    run_command(InspectConfig, inspect_shards, COMMAND, positional="shards")
