"""What the parts of the benchmark share: figures beside their floors, CPU time of whole commands, speech to work on."""

import ctypes
import itertools
import multiprocessing
import os
import resource
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from babble.cli import CommandError
from babble.codec.frames import SAMPLE_RATE_HZ, get_mode

# Imported where it is used: torch and the codec would count as CPU time of the bare floors.
if TYPE_CHECKING:
    from babble.model.babbler import Babbler

MODE = get_mode("1300")
ROOT = Path(__file__).parent.parent
SPEECH = ROOT / "tests" / "speech"
BLOCK_VALUES = 1 << 16

Result = TypeVar("Result")


@dataclass(frozen=True)
class Figure:
    """One figure and what it stands beside.

    Attributes:
        name: what was measured, on what.
        unit: of `values` and `floors`.
        values: a value a turn.
        floors: the floor's value in each of these turns; empty where a value stands for itself.
        at_least: what the median ratio (the median value where there is no floor) should reach.
        at_most: what it should not exceed.
        note: what else there is to know.
    """

    name: str
    unit: str
    values: tuple[float, ...]
    floors: tuple[float, ...] = ()
    at_least: float | None = None
    at_most: float | None = None
    note: str = ""

    @property
    def ratios(self) -> tuple[float, ...]:
        """Each value over the floor of its turn; the values themselves where there is no floor."""
        if not self.floors:
            return self.values
        return tuple(value / floor for value, floor in zip(self.values, self.floors, strict=True))

    @property
    def median(self) -> float:
        """The median of the ratios: what counts."""
        return statistics.median(self.ratios)

    @property
    def is_met(self) -> bool | None:
        """Whether it is as it should be; None where nothing is asked of it."""
        if self.at_least is None and self.at_most is None:
            return None
        return (self.at_least is None or self.median >= self.at_least) and (
            self.at_most is None or self.median <= self.at_most
        )

    def to_dict(self) -> dict[str, Any]:
        """Return it with what follows from it, ready for JSON."""
        ratios = {"ratio": self.median, "ratio_min": min(self.ratios), "ratio_max": max(self.ratios)}
        return {**asdict(self), **(ratios if self.floors else {}), "is_met": self.is_met}


def format_table(figures: Sequence[Figure]) -> str:
    """Return the figures as lines to read: medians, and the spread of the ratios."""
    header = ("figure", "median", "floor", "ratio", "min..max", "wanted", "")
    rows = [header]
    for figure in figures:
        wanted = f">= {figure.at_least:g}" if figure.at_least is not None else ""
        wanted += f"<= {figure.at_most:g}" if figure.at_most is not None else ""
        spread = f"{min(figure.ratios):.3g}..{max(figure.ratios):.3g}" if len(figure.values) > 1 else ""
        verdict = {None: "", True: "ok", False: "MISS"}[figure.is_met]
        floor = f"{statistics.median(figure.floors):,.4g}" if figure.floors else ""
        ratio = f"{figure.median:.3f}" if figure.floors else ""
        value = f"{statistics.median(figure.values):,.4g} {figure.unit}"
        rows.append((figure.name, value, floor, ratio, spread, wanted, verdict))
    widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    notes = [f"  {figure.name}: {figure.note}" for figure in figures if figure.note]
    return "\n".join([*lines, *notes])


def take_turns(turns: int, first: Callable[[], float], second: Callable[[], float]) -> tuple[tuple[float, ...], ...]:
    """Return what both measured in each turn, after one turn each to warm up; who begins changes from turn to turn."""
    first(), second()
    pairs = [(first(), second()) if turn % 2 else (second(), first())[::-1] for turn in range(turns)]
    return tuple(zip(*pairs, strict=True))


def per_second(count: int, work: Callable[[], object]) -> float:
    """Return how many a second there are of what `work` makes `count` of."""
    start = time.perf_counter()
    work()
    return count / (time.perf_counter() - start)


def in_own_process(function: Callable[..., Result], *arguments: Any) -> Result:
    """Return what a function returns in a fresh process: its threads, cores and children are no one else's."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), initializer=_end_with_parent) as pool:
        return pool.submit(function, *arguments).result()


def watch_for_sigterm() -> None:
    """Let SIGTERM stop this process and those it started as Ctrl-C does, so that nothing is left behind."""

    def stop(*_: object) -> None:
        for process in multiprocessing.active_children():
            process.terminate()
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, stop)


def _end_with_parent() -> None:
    watch_for_sigterm()
    _set_process(_PR_SET_PDEATHSIG, signal.SIGTERM)


def stay_on_one_core() -> None:
    """Keep this process, and torch in it, to one core from now on."""
    import torch

    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    torch.set_num_threads(1)


# ---- CPU time of a command and everything it starts


@dataclass(frozen=True)
class Usage:
    """What a command took, it and all processes that came of it, daemons too.

    Attributes:
        cpu_seconds: user and system time.
        wall_seconds: from its start until the last of its processes has ended.
        working_seconds: from the first to the last Ray task; 0 without any.
        busy: share of the cores that it kept busy in that time.
        least_busy: share of that time in which the least busy core had work, anybody's.
        rss_mb: the largest peak memory of a process that Ray tasks ran in, shared pages included.
        pss_mb: the largest proportional set size seen: shared pages divided among those who share them.
    """

    cpu_seconds: float
    wall_seconds: float
    working_seconds: float = 0.0
    busy: float = 0.0
    least_busy: float = 0.0
    rss_mb: float = 0.0
    pss_mb: float = 0.0


@dataclass(frozen=True)
class _Process:
    parent: int
    name: str
    started: int
    seconds: float


SAMPLE_SECONDS = 0.25
# Ray names a process after the task that it runs, or so where it runs none.
RAY_TASK, NO_RAY_TASK = "ray::", ("ray::IDLE", "ray::Dashboard", "ray::RuntimeEnv")
# Source: linux/prctl.h.
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36


def _set_process(option: int, value: int) -> None:
    assert ctypes.CDLL(None).prctl(option, value, 0, 0, 0) == 0


def _read_family() -> dict[int, _Process]:
    """Return all that came of this process, each with the CPU time of its own and of the children that it reaped."""
    ticks = os.sysconf("SC_CLK_TCK")
    processes = {}
    for entry in filter(str.isdigit, os.listdir("/proc")):
        try:
            name, rest = Path(f"/proc/{entry}/stat").read_text().split("(", 1)[1].rsplit(")", 1)
        except OSError:
            continue  # It has ended in between.
        values = rest.split()
        seconds = sum(int(value) for value in values[11:15]) / ticks
        processes[int(entry)] = _Process(int(values[1]), name, int(values[19]), seconds)
    family: set[int] = set()
    grown = {os.getpid()}
    while grown:
        grown = {pid for pid, process in processes.items() if process.parent in grown}
        family |= grown
    return {pid: processes[pid] for pid in family}


def spent_cpu_seconds() -> tuple[float, float]:
    """Return the CPU time of this process so far, and of all that came of it and lives."""
    return time.process_time(), sum(process.seconds for process in _read_family().values())


def _read_status(pid: int, file: str, key: str) -> str:
    try:
        for line in Path(f"/proc/{pid}/{file}").read_text().splitlines():
            if line.startswith(key):
                return line.split()[1]
    except OSError:
        pass
    return "0"


def _ignores_children(pid: int) -> bool:
    return bool(int(_read_status(pid, "status", "SigIgn:"), 16) >> (signal.SIGCHLD - 1) & 1)


def _core_seconds() -> np.ndarray:
    """Return the busy seconds of each of our cores since the machine started, everybody's."""
    lines = [line.split() for line in Path("/proc/stat").read_text().splitlines()]
    busy = {line[0]: sum(int(line[n]) for n in (1, 2, 3, 6, 7)) for line in lines if line[0].startswith("cpu")}
    return np.array([busy[f"cpu{core}"] for core in sorted(os.sched_getaffinity(0))]) / os.sysconf("SC_CLK_TCK")


def measure_command(command: list[str]) -> Usage:
    """Return what a command took; to be called in a process of its own, which becomes the parent of all orphans.

    CPU time goes up from child to parent when the parent waits for it, so nearly all of it arrives here. Ray's raylet
    does not wait for its workers (it ignores SIGCHLD): what was last seen of those is added.

    Raises:
        CommandError: it failed; with the end of what it said.
    """
    _set_process(_PR_SET_CHILD_SUBREAPER, 1)
    os.chdir(ROOT)
    with tempfile.NamedTemporaryFile() as said:
        start = time.monotonic()
        child = os.posix_spawnp(
            command[0],
            command,
            os.environ,
            file_actions=[(os.POSIX_SPAWN_OPEN, 1, said.name, os.O_WRONLY, 0), (os.POSIX_SPAWN_DUP2, 1, 2)],
        )
        try:
            code, usage = _watch(child, start)
        except KeyboardInterrupt:
            os.kill(child, signal.SIGTERM)
            _watch(child, start)  # Until it has put away what it was at.
            raise
        if code:
            raise CommandError(f"{' '.join(command)[:200]} failed: {Path(said.name).read_text()[-2000:]}")
    return usage


def _watch(child: int, start: float) -> tuple[int, Usage]:
    """Return the child's exit code, and what it and its kin took, once all of them have ended."""
    code, unwaited, rss, pss = 0, 0.0, 0.0, 0.0
    before: dict[int, tuple[_Process, bool]] = {}
    workers: set[int] = set()
    working: list[tuple[float, float, np.ndarray]] = []
    is_over = False
    for sample in itertools.count():
        reaped: dict[int, int] = {}
        try:
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                reaped |= [ended]
        except ChildProcessError:
            is_over = True
        if child in reaped:
            code = os.waitstatus_to_exitcode(reaped[child])
        family = _read_family()
        for pid, (process, is_unwaited) in before.items():
            is_gone = pid not in family or family[pid].started != process.started
            if is_gone and is_unwaited and pid not in reaped:
                unwaited += process.seconds
        ignoring = {pid for pid in family if _ignores_children(pid)}
        before = {pid: (process, process.parent in ignoring) for pid, process in family.items()}
        names = {pid: process.name for pid, process in family.items() if process.name.startswith(RAY_TASK)}
        tasks = {pid for pid, name in names.items() if not name.startswith(NO_RAY_TASK)}
        if tasks:
            cpu = _waited_seconds() + unwaited + sum(process.seconds for process in family.values())
            working.append((time.monotonic(), cpu, _core_seconds()))
        workers = (workers | tasks) & family.keys()
        rss = max([rss, *(float(_read_status(pid, "status", "VmHWM:")) for pid in workers)])
        if sample % 8 == 0:  # It takes the kernel a while.
            pss = max([pss, *(float(_read_status(pid, "smaps_rollup", "Pss:")) for pid in workers)])
        if is_over:
            break
        time.sleep(SAMPLE_SECONDS)
    usage = Usage(
        cpu_seconds=_waited_seconds() + unwaited,
        wall_seconds=time.monotonic() - start,
        rss_mb=rss * 1024 / 1e6,
        pss_mb=pss * 1024 / 1e6,
    )
    if len(working) > 1:
        (first, cpu, cores), (last, cpu_end, cores_end) = working[0], working[-1]
        seconds = last - first
        busy, least_busy = (cpu_end - cpu) / seconds / len(cores), float((cores_end - cores).min()) / seconds
        usage = replace(usage, working_seconds=seconds, busy=busy, least_busy=least_busy)
    return code, usage


def _waited_seconds() -> float:
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return children.ru_utime + children.ru_stime


def say(line: str) -> None:
    """Tell whoever waits what is measured now."""
    print(f"{line} ...", file=sys.stderr, flush=True)


# ---- speech


def encode_bare(paths: Sequence[Path | str]) -> Iterator[bytes]:
    """Yield each recording's packets: the floor, the bare library calls in one plain loop."""
    import pycodec2
    import soundfile
    import soxr

    step = MODE.pcm_per_frame
    for path in paths:
        encode = pycodec2.Codec2(int(MODE.name)).encode
        packets, left = [], np.empty(0, np.int16)
        with soundfile.SoundFile(path) as sound:
            rate = sound.samplerate
            resampler = soxr.ResampleStream(rate, SAMPLE_RATE_HZ, 1, "float32") if rate != SAMPLE_RATE_HZ else None
            is_last = False
            while not is_last:
                block = sound.read(BLOCK_VALUES, dtype="float32", always_2d=True)
                is_last = not len(block)
                mono = sum(block.T) / sound.channels if sound.channels > 1 else block[:, 0]
                if resampler:
                    mono = resampler.resample_chunk(np.ascontiguousarray(mono), last=is_last)
                pcm = np.clip(np.rint(mono * np.float32(32768)), -32768, 32767).astype(np.int16)
                pcm = np.concatenate([left, pcm])
                whole = len(pcm) // step * step
                packets += [encode(pcm[at : at + step]) for at in range(0, whole, step)]
                left = pcm[whole:]
        yield b"".join(packets)


def join_speech(folder: Path, hours: float) -> list[Path]:
    """Return MP3s made of tests/speech, so many hours: all of it a file, each in another order.

    In another order, as the job refuses the same recording twice.
    """
    import soundfile

    clips = [soundfile.read(path, dtype="int16") for path in sorted(SPEECH.glob("*.ogg"))]
    rate, left = clips[0][1], round(hours * 3600 * clips[0][1])
    paths: list[Path] = []
    for order in itertools.permutations(range(len(clips))):
        pcm = np.concatenate([clips[n][0] for n in order])[:left]
        paths.append(folder / f"speech-{len(paths):03d}.mp3")
        soundfile.write(paths[-1], pcm, rate)
        left -= len(pcm)
        if left < rate:
            break
    return paths


def make_corpus(folder: Path, hours: float, held_out_hours: float = 40 / 3600) -> Path:
    """Return a folder of shards: tests/speech again and again for training, so much of it for validation."""
    from babble.codec.frames import unpack_packets
    from babble.data.shards import Manifest, Segment, write_manifest, write_shards

    wanted = round(hours * 3600 * MODE.frames_per_second)
    speech: list[np.ndarray] = []
    for packets in encode_bare(sorted(SPEECH.glob("*.ogg"))):
        speech.append(unpack_packets(packets, MODE))
        if sum(map(len, speech)) >= wanted:
            break
    lengths = itertools.accumulate(len(frames) for frames in itertools.cycle(speech))
    copies = 1 + sum(1 for _ in itertools.takewhile(lambda total: total < wanted, lengths))
    train = [Segment(f"speech-{n:04d}", 0, speech[n % len(speech)]) for n in range(copies)]
    joined = np.concatenate(speech)
    held_out = np.resize(joined, (round(held_out_hours * 3600 * MODE.frames_per_second), MODE.num_fields))
    validation = [Segment("validation", 0, held_out)]
    corpus = folder / "corpus"
    corpus.mkdir()
    shards, recordings = [], []
    for split, parts in (("train", train), ("validation", validation)):
        shards += write_shards(corpus, split, parts, MODE, entries_per_shard=64)
        recordings += [{"name": p.recording, "split": split, "first_frame": 0, "frames": len(p.frames)} for p in parts]
    write_manifest(corpus, Manifest(MODE, {}, recordings, shards, []))
    return corpus


def train_bare(model: "Babbler", batches: Iterator[Any]) -> Callable[[int], None]:
    """Return a function that does so many training steps on batches: the floor, PyTorch alone, 2017's optimizer."""
    import torch

    optimizer = torch.optim.NAdam(model.parameters())

    def step(steps: int) -> None:
        for _ in range(steps):
            frames_BTF = next(batches).frames.long()
            hidden_BTH, _ = model(frames_BTF[:, :-1])
            loss = model.head.loss(hidden_BTH, frames_BTF[:, 1:]).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    return step
