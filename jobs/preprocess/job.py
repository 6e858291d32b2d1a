"""Recordings -> shards, in parallel with Ray.

    babble preprocess --sources PATH... --out shards/tale [--mode 1300] [--config configs/preprocess.yaml]

In: files, folders and zips of MP3, FLAC, WAV, OGG, M4B, AAC, .c2 or .c2cb. Steps, and the module of each:

1. `preprocess` lists the recordings and validates settings, sources and the output folder (config.py, output.py).
2. `driver.Driver` runs one Ray task per recording and one per chunk, whose code is in worker.py. It writes each chunk
   to OUT/.partial as soon as it is encoded (staging.py) and shows how far it is (progress.py).
3. `output.leave_out_duplicates` leaves out recordings that repeat others (preprocessing/duplicates.py).
4. `output.write_folder` splits the staged recordings into train, validation and test, and writes the shards and, last,
   the manifest. report.py describes them on the console, in report.txt and optionally in W&B.

Out: a folder of shards with manifest.json, report.txt, and sources.json, by which a changed recording is noticed. After
a kill at any moment, the same command continues from the staged chunks.
"""

import contextlib
import shutil
import time

from babble.cli import CommandError, Interrupted
from babble.codec.frames import get_mode
from babble.data.shards import MANIFEST, read_manifest
from babble.files import FileInUse, check_writable
from jobs.preprocess.config import PreprocessConfig
from jobs.preprocess.output import (
    check_out,
    collect_facts,
    is_finished,
    leave_out_duplicates,
    write_folder,
    write_stamps,
)
from jobs.preprocess.progress import Progress
from jobs.preprocess.report import (
    REPORT,
    describe,
    describe_duplicates,
    describe_failures,
    describe_next,
    show_in_wandb,
    write_report,
)
from jobs.preprocess.staging import Encoded, Staging, disk_full_message, open_staging
from jobs.preprocess.worker import DISK_FULL
from preprocessing.sources import Found, Source, find_sources
from preprocessing.split import Split, find_lost_splits, match_names, split_recordings


def run(config: PreprocessConfig) -> None:
    """Do the work of `babble preprocess`: see `preprocess`; then print the next command."""
    preprocess(config)
    assert config.out is not None
    # A share that does not end last writes no shards.
    if (config.out / MANIFEST).is_file():
        print(describe_next(config.out, read_manifest(config.out)), flush=True)


def preprocess(config: PreprocessConfig) -> None:
    """Encode recordings and write them as shards, or continue where an earlier run stopped.

        preprocess(PreprocessConfig(sources=(Path("book.zip"),), out=Path("shards/book")))

    Raises:
        ValueError, FileNotFoundError: settings or sources that can't work; nothing has been written.
        CommandError: more failures than accepted, a full disk, another process at work in `out`, no Ray.
        Interrupted: Ctrl-C.
    """
    assert config.out is not None
    found = find_sources(list(config.sources))
    if not found.sources and not found.failures:
        raise ValueError(f"no recordings found in {', '.join(map(str, config.sources))}.")
    if config.gain_db and found.sources and all(source.is_encoded for source in found.sources):
        raise ValueError("--gain-db has no effect: all recordings are Codec 2 already.")
    usable = [source.name for source in found.sources]
    failed = [name for name, _ in found.failures if name not in usable]
    matched = match_names([*usable, *failed], config.split) if usable else None
    _refuse_lost_splits(find_lost_splits(matched, usable), "no shards were written")
    check_out(config.out, config.sources)
    if is_finished(config.out, config.output_settings, found):
        return
    check_writable(config.out / MANIFEST, "--out")
    share = config.parse_share()
    try:
        if share is None:
            _encode_and_write(config, found, matched)
        elif _encode_share(config, found.sources, matched, share):
            with contextlib.suppress(FileInUse):  # By a share that ended at the same time, and writes the shards.
                _encode_and_write(config, found, matched)
    except KeyboardInterrupt:
        raise Interrupted("stopped. Finished chunks are kept; the same command continues from there.") from None
    except OSError as error:
        if error.errno in DISK_FULL:
            raise CommandError(disk_full_message(f"{error.strerror}: {error.filename or config.out}")) from None
        raise


def _encode_and_write(config: PreprocessConfig, found: Found, matched: dict[str, Split] | None) -> None:
    assert config.out is not None
    with open_staging(config.out, config.output_settings) as staging:
        if (share := config.parse_share()) and staging.missing_shares(share[1]):
            # Since this share ended, another one has written the shards and removed the staging.
            shutil.rmtree(staging.folder)
            return
        encoded = _encode(config, found.sources, matched, staging)
        try:
            _write(config, found, matched, encoded, staging)
        except CommandError:
            staging.reset_shares()
            raise


def _encode_share(
    config: PreprocessConfig, sources: list[Source], matched: dict[str, Split] | None, share: tuple[int, int]
) -> bool:
    """Stage one share of the recordings; return whether all shares are finished."""
    assert config.out is not None
    index, shares = share
    with open_staging(config.out, config.output_settings, share) as staging:
        _encode(config, sources[index::shares], matched, staging)
        staging.mark_share(index, shares)
        missing = staging.missing_shares(shares)
    state = f"waiting for shares {', '.join(map(str, missing))}" if missing else "all shares are finished"
    print(f"share {index} of {shares} is finished; {state}", flush=True)
    return not missing


def _encode(
    config: PreprocessConfig, sources: list[Source], matched: dict[str, Split] | None, staging: Staging
) -> Encoded:
    """Stage what is not staged yet."""
    # Imported here, as it imports Ray, which takes seconds and which a finished folder does not need.
    from jobs.preprocess.driver import Driver, running_ray

    held_out = {name for name, split in (matched or {}).items() if split != "train"}
    start = time.monotonic()
    with running_ray(config) as cores:
        ready = time.monotonic()
        progress = Progress(sources)
        try:
            encoded = Driver(sources, held_out, staging, config, cores, progress).run()
        finally:
            progress.close()
        end = time.monotonic()
    encoded.ray_start_seconds, encoded.ray_stop_seconds = ready - start, time.monotonic() - end
    return encoded


def _refuse_lost_splits(lost: dict[Split, list[str]], state: str) -> None:
    """Raise if a split that was given by name would be empty."""
    for split, names in lost.items():
        shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
        raise CommandError(
            f"--split.{split} names only recordings that failed ({shown}), so {state}. Fix them and run the same "
            "command again, or name others and use another --out."
        )


def _write(
    config: PreprocessConfig, found: Found, matched: dict[str, Split] | None, encoded: Encoded, staging: Staging
) -> None:
    """Write shards, manifest and report from the staging, and remove it.

    Raises:
        CommandError: more recordings failed than accepted, or all of them, or all of a split; the staging is kept.
    """
    out = config.out
    assert out is not None
    facts, failures = collect_facts(found, encoded, staging)
    lines: list[str] = []
    manifest = None
    lost = find_lost_splits(matched, facts) if facts else {}
    if facts and not lost:
        mode = get_mode(config.mode)
        # The same speech twice could be in train and in test.
        kept, duplicates = leave_out_duplicates(facts, matched, mode, staging)
        segments = split_recordings({name: about["frames"] for name, about in kept.items()}, config.split, matched)
        write_stamps(out, [source for source in found.sources if source.name in facts])
        manifest = write_folder(out, mode, config.output_settings, segments, facts, failures, duplicates, staging)
        lines = describe(out, manifest, encoded) + describe_duplicates(duplicates)
        if config.wandb.mode != "off":
            show_in_wandb(config, manifest, encoded, staging)
    lines += describe_failures(found, failures)
    write_report(out, lines, found)
    print("\n".join(lines), flush=True)
    _refuse_lost_splits(lost, f"no shards were written; see {out / REPORT}")
    if manifest is None:
        raise CommandError(f"no recording can be used, so no shards were written; see {out / REPORT}.")
    if len(failures) > config.max_failures:
        raise CommandError(
            f"failed recordings: {len(failures)}, accepted: {config.max_failures}. The shards hold the others. Fix or "
            "remove the failed ones and run the same command again, or accept them with "
            f"--max-failures {len(failures)}."
        )
    shutil.rmtree(staging.folder)
