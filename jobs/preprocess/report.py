"""What a preprocessing reports about its shards: on the console, in report.txt, and optionally in W&B."""

import shlex
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np

from babble.cli import config_to_dict
from babble.codec.frames import unpack_packets
from babble.data.shards import MANIFEST, SHIFTED, SPLITS, Manifest
from babble.files import write_bytes
from babble.training.wandb_run import open_wandb
from jobs.preprocess.config import PreprocessConfig
from jobs.preprocess.staging import Encoded, Staging
from preprocessing.duplicates import Duplicate
from preprocessing.kinds import FRAME_KINDS
from preprocessing.sources import Found

REPORT = "report.txt"
# Below this many hours for training, configs/demo.yaml, which reads all of it 5 times, is quick enough on a laptop.
DEMO_HOURS = 2.0
# Source: the times in the headers of the configs; configs/demo.yaml takes 3 minutes for 0.32 hours.
GPU_TIME, CPU_TIME, DEMO_MINUTES_PER_HOUR = "about five minutes on one large GPU", "about one hour on two CPU cores", 10


def describe(out: Path, manifest: Manifest, encoded: Encoded) -> list[str]:
    """Return lines about each split, and about speed."""
    lines = [f"{out}: mode {manifest.mode.name}"]
    for split in SPLITS:
        recordings = [recording for recording in manifest.recordings if recording["split"] == split]
        shards = [shard for shard in manifest.shards if shard.split == split]
        size = sum((out / shard.name).stat().st_size for shard in shards)
        lines.append(
            f"  {split:<10} {manifest.split_hours(split):7.2f} h, {manifest.split_frames(split):,} frames, "
            f"{len(recordings)} recordings, {len(shards)} shards, {size / 1e6:.1f} MB"
        )
    if manifest.shifted:
        shifts, speeds = manifest.settings["shifts"], manifest.settings["speeds"]
        times = shifts * len(speeds) - 1
        how = ["from fractions of a frame earlier"] * (shifts > 1)
        how += [f"at speeds {', '.join(f'{speed:g}' for speed in speeds)}"] * (len(speeds) > 1)
        lines.append(
            f"  {SHIFTED:<10} {manifest.split_hours(SHIFTED):7.2f} h: the training recordings, encoded {times} more "
            f"{'times' if times > 1 else 'time'} {' and '.join(how)}"
        )
    if not manifest.split_frames("train"):
        lines.append("  no recordings for training: these shards are for evaluation only")
    warned = {r["name"]: r["warnings"] for r in manifest.recordings if r.get("warnings")}
    if warned:
        lines.append(f"warnings about {len(warned)} recordings, which are in the shards:")
        lines += [f"  {name}: {'; '.join(warnings)}" for name, warnings in warned.items()]
    encoded_before = {recording["name"] for recording in manifest.recordings if recording["kind"] == FRAME_KINDS[0]}
    if (gain_db := manifest.settings["gain_db"]) and encoded_before:
        what = "recording, which is" if len(encoded_before) == 1 else "recordings, which are"
        lines.append(f"  --gain-db {gain_db:g} was not applied to {len(encoded_before)} {what} Codec 2 already")
    speed = encoded.seconds / encoded.wall_seconds if encoded.wall_seconds else 0.0
    before = f"; {encoded.staged_seconds / 3600:.2f} h were encoded before" if encoded.staged_seconds else ""
    lines.append(
        f"encoded {encoded.seconds / 3600:.2f} h in {encoded.wall_seconds:.1f} s, {speed:.0f} x real time{before}; Ray "
        f"took {encoded.ray_start_seconds:.1f} s to start and {encoded.ray_stop_seconds:.1f} s to stop"
    )
    return lines


def describe_failures(found: Found, failures: list[tuple[str, str]]) -> list[str]:
    """Return lines about recordings that failed, with their causes, and about skipped files."""
    lines = []
    if found.ignored:
        lines.append(f"skipped: {len(found.ignored)} files or folders, listed in {REPORT} with the reasons")
    if failures:
        lines.append(f"failed: {len(failures)} of {len(found.sources) + len(found.failures)} recordings")
        lines += [f"  {name}: {cause}" for name, cause in failures]
    return lines


def describe_duplicates(duplicates: list[Duplicate]) -> list[str]:
    """Return lines about recordings left out because they repeat others, and about others with speech in common."""
    left_out = [duplicate for duplicate in duplicates if duplicate.is_left_out]
    lines = [f"left out: {len(left_out)} recordings that repeat others"] if left_out else []
    for duplicate in left_out:
        others = duplicate.seconds / duplicate.share - duplicate.seconds
        and_others = f"; its other {others:.1f} s are left out too" if others >= 1 else ""
        lines.append(
            f"  {duplicate.name}: repeats {duplicate.of}, {duplicate.seconds:.1f} s ({duplicate.share:.0%}){and_others}"
        )
    if shared := [duplicate for duplicate in duplicates if not duplicate.is_left_out]:
        lines.append(f"warning: {len(shared)} pairs of recordings have some speech in common, and both are kept")
        lines += [
            f"  {duplicate.name}: {duplicate.seconds:.1f} s ({duplicate.share:.0%}) are in {duplicate.of}"
            for duplicate in shared
        ]
    return lines


def write_report(out: Path, lines: list[str], found: Found) -> None:
    """Write report.txt: these lines, and each skipped file or folder with the reason."""
    skipped = [f"  skipped: {path}: {reason}" for path, reason in found.ignored]
    # The name of the folder itself may hold bytes that are not UTF-8.
    write_bytes(out / REPORT, ("\n".join([*lines, *skipped]) + "\n").encode(errors="backslashreplace"))


def describe_next(out: Path, manifest: Manifest) -> str:
    """Return the command to run next on this machine, and the time that it takes."""
    hours = manifest.split_hours("train")
    if not hours:
        split = "test" if manifest.split_frames("test") else "validation"
        # The measures of babble need a training split.
        flags = f"--shards {shlex.quote(str(out))} --split {split} --babble-seconds 0"
        return f"next: babble evaluate runs/NAME {flags}"
    config, time = recommend_config(hours, has_nvidia_gpu())
    where = shlex.join(["--data.shards", str(out), "--name", out.resolve().name])
    return f"next ({time}): babble train --config {config} {where}"


def recommend_config(hours: float, has_gpu: bool) -> tuple[str, str]:
    """Return the training config for a machine and some hours of speech, and the expected time."""
    if has_gpu:
        return "babble", GPU_TIME
    if hours < DEMO_HOURS:
        minutes = max(1, round(hours * DEMO_MINUTES_PER_HOUR))
        return "demo", f"about {minutes} {'minutes' if minutes > 1 else 'minute'} on two CPU cores"
    return "babble-cpu", CPU_TIME


def has_nvidia_gpu() -> bool:
    """Return whether this machine has an NVIDIA GPU. Asks the driver, because torch may not be installed here."""
    try:
        return subprocess.run(["nvidia-smi", "-L"], capture_output=True, check=False).stdout.startswith(b"GPU")
    except OSError:
        return False


def show_in_wandb(config: PreprocessConfig, manifest: Manifest, encoded: Encoded, staging: Staging) -> None:
    """Log hours, speed, failures and a histogram per field to W&B."""
    out, mode = config.out, manifest.mode
    assert out is not None
    wandb = replace(config.wandb, group=config.wandb.group or "preprocess")
    run = open_wandb(wandb, out, f"preprocess-{out.name}", config_to_dict(config), job_type="preprocess")
    if run is None:
        return
    metrics: dict[str, float] = {f"corpus/hours/{split}": manifest.split_hours(split) for split in SPLITS}
    recordings = {recording["name"]: recording["sha256"] for recording in manifest.recordings}
    metrics |= {"corpus/recordings": len(recordings), "corpus/failures": len(manifest.failures)}
    metrics["corpus/duplicates"] = len(manifest.duplicates)
    if encoded.wall_seconds:
        metrics["corpus/times_real_time"] = encoded.seconds / encoded.wall_seconds
    counts = [np.zeros(levels, np.int64) for levels in mode.levels]
    for recording, sha256 in recordings.items():
        frames = unpack_packets(staging.read_packets(recording, sha256), mode)
        for f, count in enumerate(counts):
            count += np.bincount(frames[:, f], minlength=len(count))
    histograms = {f"fields/{field.name}": count for field, count in zip(mode.fields, counts, strict=True)}
    run.log_corpus(metrics, histograms, manifest.failures)
    run.log_file(out / MANIFEST, f"corpus-{out.name}", "dataset")
    run.close()
