"""The folder of shards: whether it may be written, whether it is finished already, and writing it from the staging."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from babble.cli import CommandError
from babble.codec.frames import Mode, unpack_packets
from babble.data.shards import (
    MANIFEST,
    SHIFTED,
    SPLITS,
    STAGING,
    Manifest,
    Segment,
    read_manifest,
    write_manifest,
    write_shards,
)
from babble.files import read_json, write_json
from babble.run_folder import RunFolder
from jobs.preprocess.report import REPORT
from jobs.preprocess.staging import Encoded, Staging, check_same_settings
from preprocessing.duplicates import Duplicate, find_duplicates
from preprocessing.encode import Encoding, list_encodings
from preprocessing.sources import Found, Source, hash_source
from preprocessing.split import Split, SplitSegment

# The stamps of the recordings' files. Not in the manifest, which is the same for a folder and for its zip.
STAMPS = "sources.json"


def check_out(out: Path, sources: Sequence[Path]) -> None:
    """Raise if shards must not be written to a folder.

    Raises:
        ValueError: it is a file, a source or in one, in a run folder, or holds something other than shards.
    """
    parents = (out.resolve(), *out.resolve().parents)
    for source in sources:
        if source.resolve() in parents:
            raise ValueError(f"--out {out} is in --sources {source}: name a folder outside the sources.")
    for parent in parents:
        run = RunFolder(parent)
        if run.config.is_file() and run.checkpoint("last").parent.is_dir():
            raise ValueError(f"--out {out} is in the run folder {parent}: name a folder outside it.")
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out {out} is a file: name a new folder.")
    if out.is_dir() and not (out / STAGING).is_dir() and not (out / MANIFEST).is_file():
        others = sorted(path.name for path in out.iterdir() if path.name not in (REPORT, STAMPS))
        if others:
            raise ValueError(f"--out {out} holds {others[0]}, so it is not a folder of shards: name a new one.")


def is_finished(out: Path, settings: dict[str, Any], found: Found) -> bool:
    """Return whether a folder holds the shards of these recordings and settings already, and if so, print that.

    A recording is the same if its size and its stamp in sources.json are, or else its sha256.

    Raises:
        ValueError: it holds shards of other recordings or settings.
        OSError: a recording whose stamp differs can't be read.
    """
    if (out / STAGING).is_dir() or not (out / MANIFEST).is_file():
        return False
    manifest = read_manifest(out)
    check_same_settings(manifest.settings, settings, out)
    before = {recording["name"]: recording for recording in (*manifest.recordings, *manifest.duplicates)}
    now = {source.name: source for source in found.sources}
    failed = {failure["name"] for failure in manifest.failures}
    stamps = read_json(out / STAMPS) if (out / STAMPS).is_file() else {}
    for name in sorted((before.keys() | now.keys()) - failed):
        old = before[name]["bytes"] if name in before else None
        new = now[name].num_bytes if name in now else None
        change = f"was {_size(old)}, now it is {_size(new)}"
        if old == new:
            # A file that was only copied or unpacked again has another time, but the same bytes.
            if stamps.get(name) == now[name].stamp or hash_source(now[name]) == before[name]["sha256"]:
                continue
            change = f"has other bytes now, {_size(new)} as before"
        raise ValueError(
            f"{out} is finished, but the sources have changed since: recording {name} {change}. Use another --out for "
            "the new sources."
        )
    hours = ", ".join(f"{manifest.split_hours(split):.2f} h {split}" for split in SPLITS)
    without = f", without {len(failed)} failed recordings" if failed else ""
    without += f", without {len(manifest.duplicates)} that repeat others" if manifest.duplicates else ""
    print(f"{out} is finished already: {hours}{without}. Nothing to do.")
    return True


def _size(num_bytes: int | None) -> str:
    return "missing" if num_bytes is None else f"{num_bytes:,} bytes"


def collect_facts(
    found: Found, encoded: Encoded, staging: Staging
) -> tuple[dict[str, dict[str, Any]], list[tuple[str, str]]]:
    """Return the facts of each whole recording by name, and the failures (name, cause)."""
    names = [source.name for source in found.sources if source.name in encoded.sha256]
    facts = {name: staging.read_facts(name, encoded.sha256[name]) for name in names}
    return facts, sorted(found.failures + encoded.failures)


class StagedFrames(Mapping[str, np.ndarray]):
    """The frames (T, F) of whole recordings by name, read from the staging whenever one is asked for.

    Args:
        facts: of each recording, by name.
        mode: Codec 2 mode.
        staging: holds the packets of each recording.
    """

    def __init__(self, facts: Mapping[str, dict[str, Any]], mode: Mode, staging: Staging) -> None:
        self._hashes = {name: about["sha256"] for name, about in facts.items()}
        self._mode, self._staging = mode, staging

    def __getitem__(self, name: str) -> np.ndarray:
        return unpack_packets(self._staging.read_packets(name, self._hashes[name]), self._mode)

    def __iter__(self) -> Iterator[str]:
        return iter(self._hashes)

    def __len__(self) -> int:
        return len(self._hashes)


def leave_out_duplicates(
    facts: Mapping[str, dict[str, Any]], matched: dict[str, Split] | None, mode: Mode, staging: Staging
) -> tuple[dict[str, dict[str, Any]], list[Duplicate]]:
    """Return the facts without recordings that repeat others, and all recordings with speech in common.

    Args:
        facts: of each whole recording, by name.
        matched: the split of each recording by patterns, None without patterns.
        mode: Codec 2 mode.
        staging: holds the packets of each recording.

    Raises:
        CommandError: patterns name the same speech for validation and for test, and nothing else for one of them.
    """
    splits = matched or {}
    # The user has named these for a split, so their copies are left out rather than they, even a longer one.
    named = [name for name in facts if splits.get(name, "train") != "train"]
    duplicates = find_duplicates(StagedFrames(facts, mode, staging), mode, named)
    left_out = {duplicate.name: duplicate for duplicate in duplicates if duplicate.is_left_out}
    kept = {name: about for name, about in facts.items() if name not in left_out}
    left_splits = {splits.get(name) for name in kept}
    for name, duplicate in left_out.items():
        if name in named and splits[name] not in left_splits:
            raise CommandError(
                f"split.{splits[name]} names only speech that is in split.{splits[duplicate.of]} too: {name} repeats "
                f"{duplicate.of}. Name other recordings for one of them, and use another --out."
            )
    return kept, duplicates


def write_stamps(out: Path, sources: Sequence[Source]) -> None:
    """Write the stamps of the recordings' files, before the manifest."""
    write_json(out / STAMPS, {source.name: source.stamp for source in sources})


def _list_left_out(duplicates: list[Duplicate], facts: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the manifest's rows of recordings that were left out."""
    return [
        {
            "name": duplicate.name,
            "of": duplicate.of,
            "seconds": round(duplicate.seconds, 2),
            **{key: facts[duplicate.name][key] for key in ("file", "bytes", "sha256")},
        }
        for duplicate in duplicates
        if duplicate.is_left_out
    ]


def _read_segment(
    segment: SplitSegment, number: int, encoding: Encoding, sha256: str, mode: Mode, staging: Staging
) -> Segment:
    """Return the frames of an encoding that lie in a segment; one that reaches into another split is left out."""
    first, last = encoding.first_from(segment.first_frame), encoding.count_until(segment.first_frame + segment.frames)
    frames = unpack_packets(staging.read_packets(segment.recording, sha256, number), mode)
    name = f"{segment.recording} ({encoding.name})" if encoding.name else segment.recording
    return Segment(name, first, frames[first:last])


def write_folder(
    out: Path,
    mode: Mode,
    settings: dict[str, Any],
    segments: list[SplitSegment],
    facts: dict[str, dict[str, Any]],
    failures: list[tuple[str, str]],
    duplicates: list[Duplicate],
    staging: Staging,
) -> Manifest:
    """Write shards and manifest from the staging; return the manifest.

    Args:
        out: the folder.
        mode: Codec 2 mode.
        settings: those that change the bytes of the shards.
        segments: the frames of each split, in order.
        facts: of each recording, by name.
        failures: name and cause of each recording that can't be used.
        duplicates: result of `leave_out_duplicates`.
        staging: holds the packets of each recording.
    """
    encodings = list_encodings(settings["shifts"], settings["speeds"])

    def read(segment: SplitSegment, number: int = 0) -> Segment:
        return _read_segment(segment, number, encodings[number], facts[segment.recording]["sha256"], mode, staging)

    # A folder with a manifest is finished, so the manifest is removed first, together with shards of an earlier run
    # that accepted more recordings.
    (out / MANIFEST).unlink(missing_ok=True)
    for split in (*SPLITS, SHIFTED):
        for shard in out.glob(f"{split}-*.tar"):
            shard.unlink()
    entries = settings["entries_per_shard"]
    shards = []
    for split in SPLITS:
        shards += write_shards(out, split, (read(s) for s in segments if s.split == split), mode, entries)
    train = [segment for segment in segments if segment.split == "train" and segment.frames > 1]
    shifted: list[dict[str, Any]] = []

    def read_again() -> Iterator[Segment]:
        for number in range(1, len(encodings)):
            for segment in train:
                again = read(segment, number)
                position = {"first_frame": again.first_frame, "frames": len(again.frames)}
                shifted.append({"name": again.recording, "split": SHIFTED, **position})
                yield again

    shards += write_shards(out, SHIFTED, read_again(), mode, entries)
    recordings = []
    for segment in segments:
        about = {key: value for key, value in facts[segment.recording].items() if key != "frames"}
        position = {"split": segment.split, "first_frame": segment.first_frame, "frames": segment.frames}
        recordings.append({"name": segment.recording, **position, **about})
    causes = [{"name": name, "cause": cause} for name, cause in failures]
    manifest = Manifest(mode, settings, recordings, shards, causes, _list_left_out(duplicates, facts), shifted)
    write_manifest(out, manifest)
    return manifest
