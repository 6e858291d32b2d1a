"""The driver of the Ray tasks: it starts them, receives their messages, and stages what they encode.

    with running_ray(config) as cores:
        encoded = Driver(sources, held_out, staging, config, cores, progress).run()

A recording is opened, or read on, only while the encoders need chunks, so memory does not grow with the length or the
number of the recordings.
"""

import os
import signal
import threading
import time
from collections import deque
from collections.abc import Container, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import ray
from ray.exceptions import OutOfDiskError, RayError, RayTaskError

from babble.cli import CommandError
from babble.codec.frames import SAMPLE_RATE_HZ, get_mode, unpack_packets
from babble.processes import StopRequest
from babble.ray_cluster import count_cores, start_ray
from jobs.preprocess.config import PreprocessConfig
from jobs.preprocess.progress import Progress
from jobs.preprocess.staging import Encoded, Staging, disk_full_message
from jobs.preprocess.worker import (
    ChunkHeader,
    Decoded,
    DiskFull,
    Failed,
    Message,
    Opened,
    Packets,
    decode_in_ray,
    encode_in_ray,
)
from preprocessing.encode import Encoding, list_encodings
from preprocessing.inspect import frame_facts
from preprocessing.sources import Source


@dataclass
class _Recording:
    """A recording whose tasks are running; `decoded` is set once all its chunks are with the encoders."""

    source: Source
    encodings: list[Encoding]
    sha256: str = ""
    encoding: int = 0
    decoded: Decoded | None = None
    has_failed: bool = False


def max_decoding(cores: int) -> int:
    """Return how many recordings to decode at the same time: decoding takes a third to a fifth of the encoding time."""
    return max(2, cores // 3)


def max_encoding(cores: int) -> int:
    """Return how many chunks to give to the encoders at once: one per core, and a few for them to take next."""
    return cores + max(2, cores // 4)


def _object_store_bytes(cores: int, chunk_seconds: int) -> int:
    """Return the size of the object store: twice the pcm in it, and no more, as it counts as the workers' memory."""
    chunks = max_encoding(cores) + 3 * max_decoding(cores)
    return 2 * chunks * chunk_seconds * SAMPLE_RATE_HZ * 2


@contextmanager
def running_ray(config: PreprocessConfig) -> Iterator[int]:
    """Give the number of cores to use of Ray, which is started and stopped here unless the caller has started it."""
    if is_ours := not ray.is_initialized():
        cores = config.workers or len(os.sched_getaffinity(0))
        store = _object_store_bytes(cores, config.chunk_seconds)
        start_ray(config.address, cores=config.workers, object_store_bytes=store, nodes=config.nodes)
        # Ray's handler would wait for a Ray that Slurm, which signals all processes at once, has ended already. What
        # is staged is complete at any moment, so SIGTERM may simply end this process.
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        yield min(config.workers or count_cores(), count_cores())
    finally:
        if is_ours:
            ray.shutdown()


class Driver:
    """Decodes and encodes what is not staged yet.

    Args:
        sources: the recordings.
        held_out: names of those that are not for training, which are encoded once.
        staging: where packets are kept.
        config: settings of the encoding.
        cores: cores of Ray to use.
        progress: shows how far it is.
    """

    def __init__(
        self,
        sources: list[Source],
        held_out: Container[str],
        staging: Staging,
        config: PreprocessConfig,
        cores: int,
        progress: Progress,
    ) -> None:
        self._staging, self._progress = staging, progress
        self._mode, self._held_out = get_mode(config.mode), held_out
        self._encodings = list_encodings(config.shifts, config.speeds)
        self._decode_settings = (config.gain_db, config.chunk_seconds * self._mode.frames_per_second)
        # Typed as Any: ray.remote's overloads lack streaming and back-pressure.
        remote: Any = ray.remote
        self._decode = remote(
            num_cpus=0,
            num_returns="streaming",
            # Header and pcm of one chunk: it is encoded while the next one is decoded.
            _generator_backpressure_num_objects=2,
            scheduling_strategy="SPREAD",
            max_retries=1,
        )(decode_in_ray)
        self._encode = remote(num_cpus=1)(encode_in_ray)
        self._max_decoding, self._max_encoding = max_decoding(cores), max_encoding(cores)
        self._waiting = deque(sources)
        self._decoding: dict[Any, _Recording] = {}
        self._encoding: dict[Any, tuple[_Recording, ChunkHeader]] = {}
        self._result = Encoded()

    def run(self) -> Encoded:
        """Return the result once every recording is staged or has failed.

        Raises:
            CommandError: the disk is full.
            KeyboardInterrupt: Ctrl-C was pressed; raised between two chunks, so that none is lost.
        """
        start = time.monotonic()
        with StopRequest("stopping").watching(signal.SIGINT) as request:
            while self._waiting or self._decoding or self._encoding:
                if request.number:
                    raise KeyboardInterrupt
                self._step()
        self._result.wall_seconds = time.monotonic() - start
        return self._result

    def _step(self) -> None:
        needs_chunks = len(self._encoding) < self._max_encoding
        while needs_chunks and self._waiting and len(self._decoding) < self._max_decoding:
            self._start(self._waiting.popleft())
        streams = list(self._decoding) if needs_chunks else []
        ready, _ = ray.wait([*self._encoding, *streams], timeout=1.0, fetch_local=False)
        for handle in ready:
            if handle in self._encoding:
                self._receive_packets(handle)
            else:
                self._receive_message(handle)
        self._progress.show()

    def _start(self, source: Source) -> None:
        staged = self._staging.list_staged(source.name)
        # A worker on another node has another working directory.
        absolute = replace(source, path=source.path.absolute())
        encodings = self._encodings[:1] if source.name in self._held_out else self._encodings
        scratch = self._staging.scratch.absolute()
        stream = self._decode.remote(absolute, scratch, self._mode, encodings, *self._decode_settings, staged)
        self._decoding[stream] = _Recording(source, encodings)

    def _receive_message(self, stream: Any) -> None:
        recording = self._decoding[stream]
        try:
            message: Message = ray.get(next(stream))
        except StopIteration:
            del self._decoding[stream]
            return
        except OutOfDiskError as error:
            raise CommandError(disk_full_message(_first_line(error))) from None
        except RayError as error:
            del self._decoding[stream]
            self._fail(recording, f"the process that decoded it died: {_first_line(error)}")
            return
        name = recording.source.name
        match message:
            case Opened(sha256, seconds):
                recording.sha256 = sha256
                if seconds is not None:
                    self._progress.set_length(name, seconds)
                staged = self._seconds(self._staging.count_bytes(name, sha256))
                self._result.staged_seconds += staged
                self._progress.add(staged, is_staged=True)
            case ChunkHeader() as chunk:
                handle = self._encode.remote(next(stream), chunk, self._mode, recording.encodings)
                self._encoding[handle] = (recording, chunk)
                recording.encoding += 1
            case Packets(packets):
                self._keep(recording, 0, packets)
            case Decoded() as decoded:
                recording.decoded = decoded
                self._finish_if_whole(recording)
            case Failed(cause):
                self._fail(recording, cause)
            case DiskFull(what):
                raise CommandError(disk_full_message(what))

    def _receive_packets(self, handle: Any) -> None:
        recording, chunk = self._encoding.pop(handle)
        recording.encoding -= 1
        try:
            packets: list[bytes] = ray.get(handle)
        except OutOfDiskError as error:
            raise CommandError(disk_full_message(_first_line(error))) from None
        except RayTaskError:
            # The encoder accepts any pcm: an exception in it is our own bug.
            raise
        except RayError as error:
            self._fail(recording, f"the process that encoded it died: {_first_line(error)}")
            return
        assert len(packets[0]) == chunk.frames * self._mode.packet_bytes
        self._keep(recording, chunk.index, packets)
        self._finish_if_whole(recording)

    def _keep(self, recording: _Recording, index: int, packets: list[bytes]) -> None:
        self._staging.write_chunk(recording.source.name, recording.sha256, index, packets)
        seconds = self._seconds(len(packets[0]))
        self._result.seconds += seconds
        self._progress.add(seconds)

    def _finish_if_whole(self, recording: _Recording) -> None:
        if recording.decoded is None or recording.encoding or recording.has_failed:
            return
        name, sha256 = recording.source.name, recording.sha256
        packets = self._staging.read_packets(name, sha256)
        if recording.decoded.facts is not None:
            frames = unpack_packets(packets, self._mode)
            source = recording.source
            facts = {"file": source.file_name, "bytes": source.num_bytes, "sha256": sha256, "frames": len(frames)}
            facts |= recording.decoded.facts | frame_facts(frames, self._mode)
            self._staging.write_facts(name, sha256, facts)
        self._progress.set_length(name, self._seconds(len(packets)))
        self._result.sha256[name] = sha256

    def _fail(self, recording: _Recording, cause: str) -> None:
        if recording.has_failed:
            return
        recording.has_failed = True
        self._result.failures.append((recording.source.name, cause))
        self._progress.set_length(recording.source.name, 0.0)
        self._progress.print(f"failed: {recording.source.name}: {cause}")

    def _seconds(self, packet_bytes: int) -> float:
        return packet_bytes // self._mode.packet_bytes / self._mode.frames_per_second


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]
