"""Recordings -> shards, in parallel with Ray.

    python -m jobs.preprocess --sources PATH... --out shards/tale [--mode 1300] [--config configs/preprocess.yaml]

In: files, folders and zips of MP3, FLAC, WAV, OGG, M4B, AAC, .c2 or .c2cb. Steps:

1. `find_sources` lists the recordings; patterns for the split are checked against their names;
2. `decode_recording`, a Ray task a recording, decodes it once and yields its pcm in chunks;
3. `encode_chunk`, a Ray task a chunk, returns packets, which this process stages in OUT/.partial as they come;
4. when all is staged, recordings are split and written as shards, the manifest last, and the staging is removed.

Only so many chunks are under way that every encoder has work, so memory does not grow with the length of a recording.
Killed at any moment, the same command does what is missing. Out: a folder of shards, its manifest and report.txt, and
where asked for (--wandb.mode) a run in W&B.
"""

import contextlib
import errno
import hashlib
import os
import shutil
import signal
import socket
import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from babble.cli import CommandError, Interrupted, config_to_dict, run_command
from babble.codec.codec2 import parse_c2, parse_c2cb
from babble.codec.frames import SAMPLE_RATE_HZ, Mode, get_mode, pack_packets, unpack_packets
from babble.data.shards import MANIFEST, SPLITS, STAGING, Manifest, Segment, read_manifest, write_manifest, write_shards
from babble.files import write_bytes
from babble.training.wandb_run import WandbConfig, open_wandb
from jobs.progress import Progress
from jobs.staging import FolderInUse, Staging, refuse_other_settings
from preprocessing.audio import MIN_SECONDS, BadRecording, open_recording
from preprocessing.encode import cut_chunks, encode_chunk
from preprocessing.inspect import frame_facts
from preprocessing.kinds import FRAME_SUFFIXES
from preprocessing.sources import Found, Source, find_sources, open_source
from preprocessing.split import Part, SplitConfig, match_names, split_recordings

COMMAND = "python -m jobs.preprocess"
REPORT = "report.txt"
# 20 MB of pcm, of which a few are in memory for each worker.
MAX_CHUNK_SECONDS = 1200
# How long the nodes of a Ray cluster may take to join it.
NODES_SECONDS = 60


@dataclass(frozen=True)
class PreprocessConfig:
    """Turn recordings into shards.

    Attributes:
        sources: Files, folders and zips of recordings.
        out: Folder for the shards.
        mode: Codec 2 mode: 3200, 2400, 1600, 1400, 1300, 1200 or 700C.
        gain_db: How much louder to make every recording before it is encoded.
        split: Which recordings are for validation and test.
        chunk_seconds: Length of the chunks that are encoded one by one; before each, 8 frames are encoded for nothing,
            in the modes 2400, 1400 and 1200 as many as 2,000.
        entries_per_shard: Segments of up to 1,500 frames in one tar; 64 are about an hour in the 40 ms modes.
        max_failures: How many bad recordings are accepted; with more, the exit code is 1.
        workers: Encoders at once; every core that there is if left out.
        address: A Ray cluster to run on, host:port or 'auto'; this machine if left out.
        nodes: How many nodes of that cluster to wait for, a minute at most.
        share: I/N, for the jobs of an array: encode every N-th recording from the I-th on, counted from 0. The last of
            the N to end writes the shards.
        wandb: Where hours, speed, failures and a histogram of each field are shown at the end; by default nowhere.
    """

    sources: tuple[Path, ...] = ()
    out: Path | None = None
    mode: str | int = "1300"
    gain_db: float = 0.0
    split: SplitConfig = field(default_factory=SplitConfig)
    chunk_seconds: int = 300
    entries_per_shard: int = 64
    max_failures: int = 0
    workers: int | None = None
    address: str | None = None
    nodes: int = 1
    share: str | None = None
    wandb: WandbConfig = field(default_factory=lambda: WandbConfig(mode="off"))

    def __post_init__(self) -> None:
        """Refuse what can't work, before any work."""
        get_mode(self.mode)
        if not self.sources:
            raise ValueError("--sources is missing: name the files, folders or zips to read.")
        if self.out is None:
            raise ValueError("--out is missing: name the folder for the shards.")
        if not 1 <= self.chunk_seconds <= MAX_CHUNK_SECONDS:
            raise ValueError(f"--chunk_seconds {self.chunk_seconds} must be from 1 to {MAX_CHUNK_SECONDS}.")
        if not -60 <= self.gain_db <= 60:
            raise ValueError(f"--gain_db {self.gain_db} must be from -60 to 60.")
        for name, least in (("entries_per_shard", 1), ("max_failures", 0), ("workers", 1), ("nodes", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"--{name} {value} must be at least {least}.")
        if self.nodes > 1 and self.address is None:
            raise ValueError(f"--nodes {self.nodes} has no effect without --address: only a Ray cluster has nodes.")
        if self.wandb.mode != "off" and find_spec("wandb") is None:
            raise ValueError(f"--wandb.mode {self.wandb.mode} needs W&B: pip install -e '.[dashboard]' in the clone.")
        self.which_share()

    def which_share(self) -> tuple[int, int] | None:
        """Return the share as (which, of how many), counted from 0.

        Raises:
            ValueError: it is none.
        """
        if self.share is None:
            return None
        which, slash, shares = self.share.partition("/")
        if not (slash and which.isdecimal() and shares.isdecimal() and int(which) < int(shares)):
            raise ValueError(f"--share {self.share!r}: I/N is needed, I from 0 to N - 1, as in 0/8.")
        return int(which), int(shares)

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that shape the bytes of the shards; folders that differ in one can't be mixed."""
        values = config_to_dict(self)
        kept = {key: values[key] for key in ("mode", "gain_db", "split", "chunk_seconds", "entries_per_shard")}
        return {**kept, "mode": get_mode(self.mode).name}


def decode_recording(
    source: Source, scratch: Path, mode: Mode, gain_db: float, chunk_frames: int, staged: dict[str, Any]
) -> Iterator[Any]:
    """Yield a recording as news (dicts) for the driver, each {"chunk": ...} followed by the chunk's pcm.

    Args:
        scratch: where a zip's member may be unpacked.
        staged: by the sha256 of the recording that it was made from: {"chunks": [...], "is_whole": bool}.

    Yields:
        {"sha256", "seconds"} first, seconds None where they are not known yet;
        {"chunk", "warmup_frames", "frames"} and int16 pcm (N,), for each chunk that is not staged;
        {"packets"}: all of a recording that came encoded;
        {"facts", "chunks"} at last, without facts where the recording was staged as a whole;
        or {"failure"}: the cause why it can't be used; or {"disk"}: why nothing can go on.
    """
    try:
        with open_source(source, scratch) as path:
            yield from _decode_file(source, path, mode, gain_db, chunk_frames, staged)
    except BadRecording as bad:
        yield {"failure": str(bad)}
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            yield {"disk": f"{error.strerror} while unpacking {source.file}"}
        else:
            yield {"failure": f"unreadable: {error.strerror or error}"}
    except Exception as error:  # One bad recording, bad in a way nobody thought of, must not stop the others.
        yield {"failure": f"can't be decoded: {type(error).__name__}: {error}"}


def _decode_file(
    source: Source, path: Path, mode: Mode, gain_db: float, chunk_frames: int, staged: dict[str, Any]
) -> Iterator[Any]:
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    here = staged.get(sha256, {"chunks": [], "is_whole": False})
    if here["is_whole"]:
        yield {"sha256": sha256, "seconds": None}
        yield {"chunks": len(here["chunks"])}
    elif source.suffix in FRAME_SUFFIXES:
        packets = _read_packets(path, source, mode)
        frames = len(packets) // mode.packet_bytes
        yield {"sha256": sha256, "seconds": frames / mode.frames_per_second}
        yield {"packets": packets, "frames": frames}
        yield {"facts": {"kind": "Codec 2"}, "chunks": 1}
    else:
        with open_recording(path, gain_db) as recording:
            yield {"sha256": sha256, "seconds": recording.seconds}
            num_chunks = 0
            for chunk in cut_chunks(recording.pcm_blocks(), mode, chunk_frames):
                num_chunks += 1
                if chunk.index not in here["chunks"]:
                    frames = len(chunk.pcm) // mode.pcm_per_frame - chunk.warmup_frames
                    yield {"chunk": chunk.index, "warmup_frames": chunk.warmup_frames, "frames": frames}
                    yield chunk.pcm
            about = {"kind": recording.kind, "rate_hz": recording.rate_hz, "channels": recording.channels}
            yield {"facts": about | asdict(recording.facts()), "chunks": num_chunks}


def _read_packets(path: Path, source: Source, mode: Mode) -> bytes:
    data = path.read_bytes()
    if not data:
        raise BadRecording("empty: the file has no bytes")
    try:
        if source.suffix == ".c2cb":
            packets = pack_packets(parse_c2cb(data, mode, "read as .c2cb"), mode)
        else:
            packets, found = parse_c2(data, "read as .c2")
            if found != mode:
                raise BadRecording(f"of mode {found.name}, and mode {mode.name} was asked for; give it its own --out")
    except BadRecording:
        raise
    except ValueError as error:
        raise BadRecording(str(error)) from None
    seconds = len(packets) / mode.packet_bytes / mode.frames_per_second
    if seconds < MIN_SECONDS:
        raise BadRecording(f"too short: {seconds:.2f} s, at least {MIN_SECONDS:g} s is needed")
    if packets == packets[: mode.packet_bytes] * (len(packets) // mode.packet_bytes):
        raise BadRecording("silent: every frame is the same")
    return packets


def _decode_in_ray(*args: Any) -> Iterator[Any]:
    _leave_ctrl_c_to_the_driver()
    yield from decode_recording(*args)


def _encode_in_ray(*args: Any) -> bytes:
    _leave_ctrl_c_to_the_driver()
    return encode_chunk(*args)


@contextlib.contextmanager
def _note_ctrl_c() -> Iterator[list[int]]:
    """Only note Ctrl-C, in the list that is yielded: an exception in the middle of Ray's calls can be lost there."""
    asked: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    before = signal.signal(signal.SIGINT, lambda number, _: asked.append(number))
    try:
        yield asked
    finally:
        signal.signal(signal.SIGINT, before)


def _leave_ctrl_c_to_the_driver() -> None:
    # A terminal sends it to the workers too; they would report what it interrupted, when the driver stops them anyway.
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@dataclass
class _Open:
    """A recording under way: its hash, facts and number of chunks once known, and how many are being encoded."""

    source: Source
    sha256: str = ""
    encoding: int = 0
    facts: dict[str, Any] | None = None
    chunks: int | None = None
    has_failed: bool = False


@dataclass
class Encoded:
    """What came out of the encoding: hash by recording, failures as (name, cause), speech done now and before."""

    sha256: dict[str, str] = field(default_factory=dict)
    failures: list[tuple[str, str]] = field(default_factory=list)
    seconds: float = 0.0
    staged_seconds: float = 0.0
    wall_seconds: float = 0.0


def max_decoding(cores: int) -> int:
    """Return how many recordings are open at once: decoding takes a third to a fifth of the time of encoding."""
    return max(2, cores // 3)


def max_encoding(cores: int) -> int:
    """Return how many chunks are with the encoders at once: one for each, and a few so that none has to wait."""
    return cores + max(2, cores // 4)


def start_ray(workers: int | None, address: str | None, chunk_seconds: int, nodes: int = 1) -> tuple[int, bool]:
    """Connect to a Ray cluster or start one on this machine; return its cores and whether it is ours to stop.

    Of a cluster, so many nodes are waited for, a minute at most.

    Raises:
        CommandError: it can't be reached or started.
    """
    # No accelerators are asked for, and nothing is to be told to anybody.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Imported here: its first import reads the environment, and a finished folder needs no Ray.
    import ray

    def count_cores(most: int | None) -> int:
        cores = int(ray.cluster_resources().get("CPU", 1))
        return min(most, cores) if most else cores

    if ray.is_initialized():
        return count_cores(workers), False
    if address and ":" in address:
        _check_answer(address)
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    try:
        if address is None:
            cores = workers or len(os.sched_getaffinity(0))
            # Room for twice the chunks that can be under way: no more, as what a worker has read there counts as its
            # memory. Ray wants 80 MB at least.
            chunks = max_encoding(cores) + 3 * max_decoding(cores)
            store = max(80 << 20, 2 * chunks * chunk_seconds * SAMPLE_RATE_HZ * 2)
            ray.init(address="local", num_cpus=cores, include_dashboard=False, object_store_memory=store, **quiet)
        else:
            ray.init(address=address, **quiet)
            _await_nodes(nodes)
            cores = count_cores(workers)
    except Exception as error:
        if address:
            hint = "If it was started with tokens, set RAY_AUTH_MODE=token here too."
            raise CommandError(f"Ray at {address} can't be used: {error}. {hint}") from None
        raise CommandError(f"Ray can't be started on this machine: {error}") from None
    # Ray's own handler works on with a Ray that may be gone: SIGTERM, as Slurm sends it to all processes at once, ends
    # the driver as any other program. What is staged is whole at any moment.
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    return cores, True


def _await_nodes(nodes: int) -> None:
    import ray

    end = time.monotonic() + NODES_SECONDS
    while (there := sum(node["Alive"] for node in ray.nodes())) < nodes and time.monotonic() < end:
        time.sleep(0.5)
    if there < nodes:
        print(f"{there} of {nodes} nodes have joined Ray in {NODES_SECONDS} s: going on with those.", flush=True)


def _check_answer(address: str) -> None:
    """Raise if nobody answers at an address: Ray itself would try for a quarter of an hour."""
    host, port = address.removeprefix("ray://").rsplit(":", 1)
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except (OSError, ValueError) as error:
        raise CommandError(f"nobody answers at --address {address}: {error}.") from None


class Encoding:
    """Decodes and encodes what is not staged yet: the driver's side of the Ray tasks."""

    def __init__(
        self, sources: list[Source], staging: Staging, config: PreprocessConfig, cores: int, progress: Progress
    ) -> None:
        import ray

        self._mode = get_mode(config.mode)
        self._decode_settings = (self._mode, config.gain_db, config.chunk_seconds * self._mode.frames_per_second)
        # Typed as Any: ray.remote's overloads know neither streaming nor its back-pressure.
        remote: Any = ray.remote
        self._decode = remote(
            num_cpus=0,
            num_returns="streaming",
            # News and pcm of one chunk: it is encoded while the next is decoded.
            _generator_backpressure_num_objects=2,
            scheduling_strategy="SPREAD",
            max_retries=1,
        )(_decode_in_ray)
        self._encode = remote(num_cpus=1)(_encode_in_ray)
        self._max_decoding = max_decoding(cores)
        self._max_encoding = max_encoding(cores)
        self._staging, self._progress = staging, progress
        self._waiting = deque(sources)
        self._decoding: dict[Any, _Open] = {}
        self._encoding: dict[Any, tuple[_Open, int, int]] = {}
        self._done = Encoded()

    def run(self) -> Encoded:
        """Return the hash of every recording that is whole in the staging, and the failures.

        Raises:
            CommandError: the disk is full.
            KeyboardInterrupt: Ctrl-C; raised between two chunks.
        """
        with _note_ctrl_c() as asked:
            return self._run(asked)

    def _run(self, asked: list[int]) -> Encoded:
        import ray

        start = time.monotonic()
        while self._waiting or self._decoding or self._encoding:
            if asked:
                raise KeyboardInterrupt
            is_hungry = len(self._encoding) < self._max_encoding
            while self._waiting and is_hungry and len(self._decoding) < self._max_decoding:
                self._open(self._waiting.popleft())
            # A recording is read on only while the encoders need more.
            streams = list(self._decoding) if is_hungry else []
            ready, _ = ray.wait([*self._encoding, *streams], timeout=1.0, fetch_local=False)
            for handle in ready:
                if handle in self._encoding:
                    self._take_packets(handle)
                else:
                    self._take_news(handle)
            self._progress.show()
        self._done.wall_seconds = time.monotonic() - start
        return self._done

    def _open(self, source: Source) -> None:
        staged = self._staging.list_staged(source.name)
        # A worker on another node has another working directory.
        there = replace(source, path=source.path.absolute())
        stream = self._decode.remote(there, self._staging.scratch.absolute(), *self._decode_settings, staged)
        self._decoding[stream] = _Open(source)

    def _take_news(self, stream: Any) -> None:
        import ray
        from ray.exceptions import OutOfDiskError, RayError

        recording = self._decoding[stream]
        try:
            news = ray.get(next(stream))
        except StopIteration:
            del self._decoding[stream]
            return
        except OutOfDiskError as error:
            raise CommandError(full_disk(_first_line(error))) from None
        except RayError as error:
            del self._decoding[stream]
            self._fail(recording, f"the process that decoded it died: {_first_line(error)}")
            return
        name = recording.source.name
        if "disk" in news:
            raise CommandError(full_disk(news["disk"]))
        if "failure" in news:
            self._fail(recording, news["failure"])
        elif "sha256" in news:
            recording.sha256 = news["sha256"]
            if news["seconds"] is not None:
                self._progress.learn(name, news["seconds"])
            staged_bytes = self._staging.count_bytes(name, recording.sha256)
            staged_seconds = self._seconds(staged_bytes // self._mode.packet_bytes)
            self._done.staged_seconds += staged_seconds
            self._progress.add(staged_seconds, is_staged=True)
        elif "chunk" in news:
            packets = self._encode.remote(next(stream), news["warmup_frames"], self._mode)
            self._encoding[packets] = (recording, news["chunk"], news["frames"])
            recording.encoding += 1
        elif "packets" in news:
            self._keep(recording, 0, news["packets"])
        else:
            recording.facts, recording.chunks = news.get("facts"), news["chunks"]
            self._finish_if_whole(recording)

    def _take_packets(self, handle: Any) -> None:
        import ray
        from ray.exceptions import OutOfDiskError, RayError, RayTaskError

        recording, chunk, frames = self._encoding.pop(handle)
        recording.encoding -= 1
        try:
            packets = ray.get(handle)
        except OutOfDiskError as error:
            raise CommandError(full_disk(_first_line(error))) from None
        except RayTaskError:
            # The encoder takes any pcm there is: what it raises is our own bug.
            raise
        except RayError as error:
            self._fail(recording, f"the process that encoded it died: {_first_line(error)}")
            return
        assert len(packets) == frames * self._mode.packet_bytes
        self._keep(recording, chunk, packets)
        self._finish_if_whole(recording)

    def _keep(self, recording: _Open, chunk: int, packets: bytes) -> None:
        self._staging.write_chunk(recording.source.name, recording.sha256, chunk, packets)
        seconds = self._seconds(len(packets) // self._mode.packet_bytes)
        self._done.seconds += seconds
        self._progress.add(seconds)

    def _finish_if_whole(self, recording: _Open) -> None:
        if recording.chunks is None or recording.encoding or recording.has_failed:
            return
        name, sha256 = recording.source.name, recording.sha256
        packets = self._staging.read_packets(name, sha256)
        frames = len(packets) // self._mode.packet_bytes
        # Without facts it was staged as a whole before, with them.
        if recording.facts is not None:
            path = Path(recording.source.member or recording.source.path)
            file = {"file": path.name, "bytes": recording.source.num_bytes, "sha256": sha256}
            speech = frame_facts(unpack_packets(packets, self._mode), self._mode)
            self._staging.write_facts(name, sha256, file | {"frames": frames} | recording.facts | speech)
        self._progress.learn(name, self._seconds(frames))
        self._done.sha256[name] = sha256

    def _fail(self, recording: _Open, cause: str) -> None:
        if recording.has_failed:
            return
        recording.has_failed = True
        self._done.failures.append((recording.source.name, cause))
        self._progress.learn(recording.source.name, 0.0)
        self._progress.say(f"failed: {recording.source.name}: {cause}")

    def _seconds(self, frames: int) -> float:
        return frames / self._mode.frames_per_second


def full_disk(what: str) -> str:
    """Return what to tell of a full disk."""
    return f"disk full: {what}. What is done is kept: make room and give the same command again."


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]


def preprocess(config: PreprocessConfig) -> None:
    """Turn recordings into shards, or go on where an earlier run stopped.

    Raises:
        ValueError, FileNotFoundError: settings or sources that can't work.
        CommandError: more failures than accepted, a full disk, no Ray.
        Interrupted: stopped by Ctrl-C.
    """
    assert config.out is not None
    found = find_sources(list(config.sources))
    if not found.sources and not found.failures:
        raise ValueError(f"there is no recording in {', '.join(map(str, config.sources))}.")
    if config.gain_db and all(source.suffix in FRAME_SUFFIXES for source in found.sources):
        raise ValueError("--gain_db has no effect: every recording is encoded already.")
    matched = match_names([source.name for source in found.sources], config.split) if found.sources else None
    if _is_finished(config, found):
        return
    share = config.which_share()
    try:
        if share is None:
            _do_all(config, found, matched)
        elif _do_share(config, found.sources, share):
            with contextlib.suppress(FolderInUse):  # By a share that ended at the same time, and writes the shards.
                _do_all(config, found, matched)
    except KeyboardInterrupt:
        raise Interrupted("stopped; what is done is kept, and the same command goes on from there.") from None
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise CommandError(full_disk(f"{error.strerror}: {error.filename or config.out}")) from None
        raise


def _do_all(config: PreprocessConfig, found: Found, matched: dict[str, str] | None) -> None:
    """Stage what is not staged yet, and write the shards."""
    assert config.out is not None
    with Staging(config.out, config.settings) as staging:
        if (share := config.which_share()) and staging.missing_shares(share[1]):
            # Another share has written the shards, and removed the staging, since this one was done.
            shutil.rmtree(staging.folder)
            return
        encoded, ray_seconds = _encode(config, found.sources, staging)
        try:
            _finish(config, get_mode(config.mode), staging, found, encoded, matched, ray_seconds)
        except CommandError:
            staging.forget_shares()
            raise


def _do_share(config: PreprocessConfig, sources: list[Source], share: tuple[int, int]) -> bool:
    """Stage this share of the recordings; return whether all shares are done, so that the shards can be written."""
    assert config.out is not None
    which, shares = share
    with Staging(config.out, config.settings, share) as staging:
        _encode(config, sources[which::shares], staging)
        staging.end_share()
        missing = staging.missing_shares(shares)
    print(
        f"share {which} of {shares} is done; " + (f"not yet: {missing}" if missing else "it was the last"), flush=True
    )
    return not missing


def _encode(config: PreprocessConfig, sources: list[Source], staging: Staging) -> tuple[Encoded, tuple[float, float]]:
    """Stage recordings; return what came of them, and the seconds that Ray took to start and to stop."""
    start = time.monotonic()
    cores, is_ours = start_ray(config.workers, config.address, config.chunk_seconds, config.nodes)
    start_seconds = time.monotonic() - start
    progress = Progress(sources)
    try:
        encoded = Encoding(sources, staging, config, cores, progress).run()
    finally:
        progress.close()
        stop = time.monotonic()
        if is_ours:
            _stop_ray()
    return encoded, (start_seconds, time.monotonic() - stop)


def _stop_ray() -> None:
    import ray

    ray.shutdown()


def _is_finished(config: PreprocessConfig, found: Found) -> bool:
    """Return whether OUT holds these recordings made with these settings already.

    Raises:
        ValueError: it holds something else.
    """
    out = config.out
    assert out is not None
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out {out} is a file; name a folder.")
    if (out / STAGING).is_dir() or not out.is_dir():
        return False
    if not (out / MANIFEST).is_file():
        if others := sorted(path.name for path in out.iterdir() if path.name != REPORT):
            raise ValueError(f"{out} holds {others[0]} and is no folder of shards: give a new or empty --out.")
        return False
    manifest = read_manifest(out)
    refuse_other_settings(manifest.settings, config.settings, out)
    before = {recording["name"]: recording["bytes"] for recording in manifest.recordings}
    now = {source.name: source.num_bytes for source in found.sources}
    failed = {failure["name"] for failure in manifest.failures}
    for name in sorted(before.keys() | now.keys()):
        if name not in failed and before.get(name) != now.get(name):
            raise ValueError(
                f"{out} is finished, but recording {name} was {_size(before.get(name))} then and is "
                f"{_size(now.get(name))} now. Give another --out for the sources as they are now."
            )
    hours = " + ".join(f"{manifest.split_hours(split):.2f} h {split}" for split in SPLITS)
    left_out = f", {len(failed)} recordings were accepted as failed" if failed else ""
    print(f"{out} is finished already: {hours}{left_out}. Nothing to do.")
    return True


def _size(num_bytes: int | None) -> str:
    return "not there" if num_bytes is None else f"{num_bytes:,} bytes"


def _finish(
    config: PreprocessConfig,
    mode: Mode,
    staging: Staging,
    found: Found,
    encoded: Encoded,
    matched: dict[str, str] | None,
    ray_seconds: tuple[float, float],
) -> None:
    """Write shards, manifest and report from what is staged."""
    out = config.out
    assert out is not None
    failures = found.failures + encoded.failures
    facts: dict[str, dict[str, Any]] = {}
    by_hash: dict[str, str] = {}
    for source in found.sources:
        sha256 = encoded.sha256.get(source.name)
        if sha256 is None:
            continue
        # The same speech twice would be in training and in the test.
        if (first := by_hash.setdefault(sha256, source.name)) != source.name:
            failures.append((source.name, f"the same file as {first}, byte for byte; leave one out"))
        else:
            facts[source.name] = staging.read_facts(source.name, sha256)
    failures.sort()

    lines: list[str] = []
    if facts:
        parts = split_recordings({name: about["frames"] for name, about in facts.items()}, config.split, matched)
        if not any(part.split == "train" for part in parts):
            raise CommandError(f"nothing is left to train on: {_list_failures(failures)}")
        manifest = _write_folder(config, mode, staging, facts, parts, failures)
        lines += _describe(manifest, config, encoded, ray_seconds)
        if config.wandb.mode != "off":
            _show_in_wandb(manifest, config, encoded, staging)
    if found.ignored:
        lines.append(f"ignored, as they are no audio: {len(found.ignored)} files")
    if failures:
        lines.append(f"failed: {len(failures)} of {len(found.sources) + len(found.failures)} recordings")
        lines += [f"  {name}: {cause}" for name, cause in failures]
    details = [f"  ignored: {path}" for path in found.ignored]
    write_bytes(out / REPORT, ("\n".join([*lines, *details]) + "\n").encode())
    print("\n".join(lines), flush=True)

    if not facts:
        raise CommandError(f"none of {len(failures)} recordings could be used, nothing was written; see {out / REPORT}")
    if len(failures) > config.max_failures:
        raise CommandError(
            f"{len(failures)} recordings failed, {config.max_failures} are accepted. The shards hold the others. Mend "
            f"them and give the same command again, or accept them with --max_failures {len(failures)}."
        )
    shutil.rmtree(staging.folder)
    print(f"next: python -m babble.train --config configs/babble.yaml --data.shards {out} --name NAME")


def _list_failures(failures: list[tuple[str, str]]) -> str:
    return "; ".join(f"{name}: {cause}" for name, cause in failures) or "every recording is in validation or test"


def _write_folder(
    config: PreprocessConfig,
    mode: Mode,
    staging: Staging,
    facts: dict[str, dict[str, Any]],
    parts: list[Part],
    failures: list[tuple[str, str]],
) -> Manifest:
    out = config.out
    assert out is not None

    def segments(split: str) -> Iterator[Segment]:
        for part in parts:
            if part.split == split:
                packets = staging.read_packets(part.recording, facts[part.recording]["sha256"])
                frames = unpack_packets(packets, mode)[part.first_frame : part.first_frame + part.frames]
                yield Segment(part.recording, part.first_frame, frames)

    # A folder with a manifest is a finished one, so it goes first, and shards of more recordings with it.
    (out / MANIFEST).unlink(missing_ok=True)
    for split in SPLITS:
        for left in out.glob(f"{split}-*.tar"):
            left.unlink()
    shards = [
        shard for split in SPLITS for shard in write_shards(out, split, segments(split), mode, config.entries_per_shard)
    ]
    recordings = []
    for part in parts:
        about = {key: value for key, value in facts[part.recording].items() if key != "frames"}
        place = {"name": part.recording, "split": part.split, "first_frame": part.first_frame, "frames": part.frames}
        recordings.append(place | about)
    told = [{"name": name, "cause": cause} for name, cause in failures]
    manifest = Manifest(mode, config.settings, recordings, shards, told)
    write_manifest(out, manifest)
    return manifest


def _describe(
    manifest: Manifest, config: PreprocessConfig, encoded: Encoded, ray_seconds: tuple[float, float]
) -> list[str]:
    out = config.out
    assert out is not None
    lines = [f"{out}: mode {manifest.mode.name}"]
    for split in SPLITS:
        recordings = [recording for recording in manifest.recordings if recording["split"] == split]
        shards = [shard for shard in manifest.shards if shard.split == split]
        size = sum((out / shard.name).stat().st_size for shard in shards)
        lines.append(
            f"  {split:<10} {manifest.split_hours(split):7.2f} h, {manifest.split_frames(split):,} frames, "
            f"{len(recordings)} recordings, {len(shards)} shards, {size / 1e6:.1f} MB"
        )
    hours = encoded.seconds / 3600
    speed = encoded.seconds / encoded.wall_seconds if encoded.wall_seconds else 0.0
    before = f"; {encoded.staged_seconds / 3600:.2f} h were done before" if encoded.staged_seconds else ""
    lines.append(
        f"{hours:.2f} h in {encoded.wall_seconds:.1f} s, {speed:.0f} x real time{before}; Ray took "
        f"{ray_seconds[0]:.1f} s to start and {ray_seconds[1]:.1f} s to stop"
    )
    return lines


def _show_in_wandb(manifest: Manifest, config: PreprocessConfig, encoded: Encoded, staging: Staging) -> None:
    """Log what came of the recordings, while they are staged still."""
    out, mode = config.out, manifest.mode
    assert out is not None
    wandb = replace(config.wandb, group=config.wandb.group or "preprocess")
    name = f"preprocess-{out.name}"
    opened = open_wandb(wandb, out, name, config_to_dict(config), job_type="preprocess")
    if opened is None:
        return
    figures: dict[str, float] = {f"corpus/hours/{split}": manifest.split_hours(split) for split in SPLITS}
    recordings = {recording["name"]: recording["sha256"] for recording in manifest.recordings}
    figures |= {"corpus/recordings": len(recordings), "corpus/failures": len(manifest.failures)}
    if encoded.wall_seconds:
        figures["corpus/times_real_time"] = encoded.seconds / encoded.wall_seconds
    counts = [np.zeros(levels, np.int64) for levels in mode.levels]
    for recording, sha256 in recordings.items():
        frames = unpack_packets(staging.read_packets(recording, sha256), mode)
        for f, count in enumerate(counts):
            count += np.bincount(frames[:, f], minlength=len(count))
    histograms = {f"fields/{field.name}": count for field, count in zip(mode.fields, counts, strict=True)}
    opened.log_corpus(figures, histograms, manifest.failures)
    opened.log_file(out / MANIFEST, f"corpus-{out.name}", "dataset")
    opened.close()


if __name__ == "__main__":
    run_command(PreprocessConfig, preprocess, COMMAND)
