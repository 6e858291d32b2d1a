"""How fast babble is, each figure beside its floor: the same work in the barest loop there is.

    python -m jobs.benchmark [--sources PATH...] [--only preprocess generation] [--json figures.json]

1. `measure_preprocess`: CPU time of `jobs.preprocess` beside one plain loop over the same audio, how busy it keeps the
   cores, and the memory of its workers;
2. `measure_data`: windows a second beside what the training step takes of them;
3. `measure_training`: the real `train` beside a bare PyTorch loop on the same batches; `measure_logging`: with all that
   is logged by default beside none of it;
4. `measure_generation`: `iterate_babble` beside a bare loop of fused cells;
5. `measure_evaluation`: what an hour of held-out speech takes `python -m babble.evaluate`, its babble apart;
6. `measure_ranks`, `measure_stopping`, `measure_streaming` (scaling.py): two processes beside one, how fast a training
   saves when it is told to, and speech read from shards that are not held in memory;
7. `measure_rates` and `format_plan`: from a few rates, what 16 to 60,000 hours on 1 to 256 devices would take.

A figure and its floor take turns, several times, in the same run and on the same cores, so that a noisy machine harms
both alike; what counts is the median of the ratios of neighbours. Whoever measures wants a machine that does nothing
else. Out: a table, and JSON where asked for. A miss is shown, it is no error. Linux only.
"""

import io
import itertools
import json
import math
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import numpy as np

from babble.cli import CommandError, config_to_dict, read_config, run_command
from babble.codec.frames import Mode
from babble.run_folder import RunFolder, environment
from jobs.measuring import (
    MODE,
    ROOT,
    SPEECH,
    Figure,
    encode_bare,
    format_table,
    in_own_process,
    join_speech,
    make_corpus,
    measure_command,
    per_second,
    say,
    spent_cpu_seconds,
    stay_on_one_core,
    take_turns,
    train_bare,
    watch_for_sigterm,
)
from jobs.scaling import (
    format_plan,
    measure_nodes,
    measure_ranks,
    measure_rates,
    measure_stopping,
    measure_streaming,
    measure_sweep,
)

# Imported where it is used: torch and the codec would count as CPU time of the bare floors.
if TYPE_CHECKING:
    from babble.model.babbler import Babbler

COMMAND = "python -m jobs.benchmark"
PARTS = (
    *("preprocess", "data", "training", "logging", "generation", "evaluation"),
    *("nodes", "ranks", "stopping", "sweep", "streaming", "plan"),
)
# Whose network the figures "by itself" are of.
DEFAULT_RECIPE = ROOT / "configs" / "babble-cpu.yaml"
# What both the job and the bare floor read; M4B and AAC take another library.
SOUNDFILE_SUFFIXES = (".mp3", ".flac", ".wav", ".ogg", ".oga", ".opus")
# Above this one pair of preprocessing is enough, and takes long enough.
ONE_PAIR_HOURS = 5
CROWD_SECONDS = 3600
STREAMS = 64
PROMPT_FRAMES = 200
# As in configs/babble-rnn-2017.yaml.
BATCH_SIZE, WINDOW_FRAMES = 32, 200


@dataclass(frozen=True)
class BenchmarkConfig:
    """Measure how fast babble is, each figure beside its floor.

    Attributes:
        only: The parts to measure: preprocess, data, training, logging, generation, evaluation, nodes, ranks,
            stopping, sweep, streaming, plan.
        sources: Recordings to preprocess (MP3, FLAC, WAV, OGG), or folders of them; without, the project's own
            tests/speech is joined in several orders and written as MP3.
        json: A file for every value of every figure.
        pairs: Preprocessings, each beside its floor; by default 3, or 1 for more than 5 hours of audio.
        speech_hours: How much of tests/speech to preprocess where there are no sources.
        turns: How often the other figures and their floors take turns.
        corpus_hours: Length of the training corpus, made of tests/speech again and again.
        units: Hidden units of each of the three layers, for data and generation.
        training_units: The same for each network that is trained.
        training_steps: Training steps a turn.
        logging_steps: Training steps from one row of figures to the next, as many with logging as without.
        frames: Frames a turn of one stream, of 64 streams a tenth; rounded up to whole blocks of babble.generate.
        seconds: What a whole `python -m babble.generate` makes.
        held_out_hours: How much speech `python -m babble.evaluate` hears.
        rank_steps: Training steps of each process where one and two are compared.
        trials: Trainings of the sweep.
        trial_steps: Steps of each of them.
        streamed_hours: How much speech is read from shards, made by repeating the training corpus.
        device_frames: For the plan, frames a second that one device trains on, where that was measured elsewhere, as on
            a GPU; by default one core's.
    """

    only: tuple[str, ...] = PARTS
    sources: tuple[Path, ...] = ()
    json: Path | None = None
    pairs: int | None = None
    speech_hours: float = 2.0
    turns: int = 11
    corpus_hours: float = 12.0
    units: int = 320
    training_units: tuple[int, ...] = (160, 320)
    training_steps: int = 2
    logging_steps: int = 50
    frames: int = 1000
    seconds: float = 60.0
    held_out_hours: float = 1.0
    rank_steps: int = 120
    trials: int = 8
    trial_steps: int = 700
    streamed_hours: float = 500.0
    device_frames: float | None = None

    def __post_init__(self) -> None:
        """Refuse what can't be measured."""
        if unknown := [part for part in self.only if part not in PARTS]:
            raise ValueError(f"--only {unknown[0]} is none of {', '.join(PARTS)}.")
        for key in (
            "pairs",
            "turns",
            "units",
            "training_steps",
            "logging_steps",
            "frames",
            "rank_steps",
            "trials",
            "trial_steps",
        ):
            value = getattr(self, key)
            if value is not None and value < 1:
                raise ValueError(f"--{key} {value}: at least 1 is needed.")


# ---- 1. preprocessing


def run_bare_floor() -> None:
    """Encode the recordings that the command line names, as `encode_bare` does, and throw the packets away."""
    for _ in encode_bare(sys.argv[1:]):
        pass


def start_and_stop_ray() -> None:
    """Start Ray on this machine as the preprocessing job does, let each core do nothing once, and stop it."""
    os.environ.update(RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO="0", RAY_USAGE_STATS_ENABLED="0", RAY_AUTH_MODE="token")
    import ray

    cores = len(os.sched_getaffinity(0))
    ray.init(address="local", num_cpus=cores, include_dashboard=False, log_to_driver=False, logging_level=40)
    nothing: Any = ray.remote(lambda: None)
    ray.get([nothing.remote() for _ in range(cores)])
    ray.shutdown()


def _call(function: Callable[[], None]) -> list[str]:
    return [sys.executable, "-c", f"from jobs.benchmark import {function.__name__} as run; run()"]


def find_recordings(sources: Sequence[Path]) -> list[Path]:
    """Return the files to preprocess.

    Raises:
        FileNotFoundError, ValueError: a source that is not there, or no recording that soundfile reads.
    """
    from preprocessing.sources import find_sources

    found = find_sources(list(sources)).sources
    paths = [source.path.resolve() for source in found if not source.member and source.suffix in SOUNDFILE_SUFFIXES]
    if not paths:
        raise ValueError(f"--sources: no {', '.join(SOUNDFILE_SUFFIXES)} there (files and folders, no zips).")
    return paths


def measure_preprocess(config: BenchmarkConfig, folder: Path) -> list[Figure]:
    """Return CPU time beside the floor's, how busy the cores were and what memory the workers took."""
    import soundfile

    paths = find_recordings(config.sources) if config.sources else join_speech(folder, config.speech_hours)
    seconds = [soundfile.info(path).duration for path in paths]
    hours = sum(seconds) / 3600
    what = f"{hours:.2f} h in {len(paths)} files of " + (
        ", ".join(map(str, config.sources)) if config.sources else "tests/speech joined as MP3"
    )
    pairs = config.pairs or (1 if hours > ONE_PAIR_HOURS else 3)
    say(f"preprocess: {what}, {pairs} times each")
    bare = [*_call(run_bare_floor), *map(str, paths)]
    floors, jobs, rays, reports = [], [], [], []
    for pair in range(pairs):
        out = folder / f"shards-{pair}"
        job = [sys.executable, "-m", "jobs.preprocess", "--sources", *map(str, paths), "--out", str(out)]
        floors.append(in_own_process(measure_command, bare))
        jobs.append(in_own_process(measure_command, job))
        if not jobs[-1].working_seconds:
            raise CommandError(f"{hours * 60:.1f} minutes of audio are too few: Ray was never seen at work on them.")
        rays.append(in_own_process(measure_command, _call(start_and_stop_ray)))
        reports.append("".join(line for line in (out / "report.txt").read_text().splitlines() if "Ray took" in line))
    floor_cpu = tuple(usage.cpu_seconds for usage in floors)
    job_cpu = tuple(usage.cpu_seconds for usage in jobs)
    ray_cpu = tuple(usage.cpu_seconds for usage in rays)
    apart = tuple(job - ray for job, ray in zip(job_cpu, ray_cpu, strict=True))
    crowd = _measure_crowd(paths[: max(1, sum(total <= CROWD_SECONDS for total in itertools.accumulate(seconds)))])
    name, beside = "preprocessing, without Ray's start and stop", Figure("", "", apart, floor_cpu).median / crowd.median
    note = f"{what}; {reports[-1]}; {beside:.3f} beside a floor that runs on every core"
    return [
        Figure(name, "CPU s", apart, floor_cpu, at_most=1.10, note=note),
        Figure("preprocessing, with them", "CPU s", job_cpu, floor_cpu),
        Figure("Ray's start and stop alone", "CPU s", ray_cpu, note=f"{rays[-1].wall_seconds:.1f} s by the clock"),
        crowd,
        Figure(
            "cores busy while encoding",
            "of each",
            tuple(usage.busy for usage in jobs),
            at_least=0.9,
            note=f"{jobs[-1].working_seconds:.1f} s from the first Ray task to the last; with all else that ran on the "
            f"machine the least busy core was busy {min(usage.least_busy for usage in jobs):.0%} of it",
        ),
        Figure(
            "peak memory of a worker",
            "MB",
            tuple(usage.rss_mb for usage in jobs),
            at_most=500,
            note=f"{max(usage.pss_mb for usage in jobs):.0f} MB with shared pages divided among those who share them",
        ),
    ]


def _measure_crowd(paths: Sequence[Path]) -> Figure:
    """Return what the floor costs more where every core runs one: the machine's own part in what the job costs more."""
    bare = [*_call(run_bare_floor), *map(str, paths)]
    cores = len(os.sched_getaffinity(0))
    alone = in_own_process(measure_command, bare).cpu_seconds
    with ThreadPoolExecutor(cores) as threads:
        crowd = list(threads.map(lambda _: in_own_process(measure_command, bare).cpu_seconds, range(cores)))
    return Figure(f"the floor itself, {cores} at once", "CPU s", (statistics.mean(crowd),), (alone,))


# ---- 2. and 3. data and training


def _network_2017(units: int) -> Any:
    from babble.model.babbler import ModelConfig

    return ModelConfig(inputs="scaled", cell="lstm", num_layers=3, units=units, head="regression")


def _measure_data(config: BenchmarkConfig, corpus: Path) -> list[Figure]:
    stay_on_one_core()
    from babble.data.datamodule import SpeechData
    from babble.data.loaders import DataConfig
    from babble.model.babbler import Babbler

    data = SpeechData(DataConfig(corpus, window_frames=WINDOW_FRAMES, batch_size=BATCH_SIZE), seed=0)
    data.setup()
    loader = data.train_dataloader()
    batches = itertools.chain.from_iterable(itertools.repeat(loader))
    train = train_bare(Babbler(_network_2017(config.units), MODE), batches)
    windows, steps = 100 * BATCH_SIZE, BATCH_SIZE
    fed, taken = take_turns(
        config.turns,
        lambda: per_second(windows, lambda: [next(batches) for _ in range(100)]),
        lambda: per_second(steps, lambda: train(1)),
    )
    note = f"{BATCH_SIZE * len(loader):,} windows; beside it a bare training step, batches of {BATCH_SIZE}, one core"
    return [Figure(f"data for 3x{config.units}", "windows/s", fed, taken, at_least=10, note=note)]


def measure_data(config: BenchmarkConfig, folder: Path) -> list[Figure]:
    """Return how many windows one process makes, beside how many the training step takes on the same core."""
    say("data")
    return in_own_process(_measure_data, config, make_corpus(folder, config.corpus_hours))


def _measure_training(units: int, config: BenchmarkConfig, corpus: Path, folder: Path) -> list[Figure]:
    import copy

    import babble.train
    from babble.data.loaders import DataConfig
    from babble.train import ComputeConfig, StopConfig, TrainConfig, train
    from babble.training.metrics import Speed
    from babble.training.module import OptimConfig
    from babble.training.samples import SamplesConfig
    from babble.training.wandb_run import WandbConfig

    turns: list[tuple[float, float]] = []
    frames = config.training_steps * BATCH_SIZE * WINDOW_FRAMES

    class Turns(Speed):
        """Stands in for the training's own Speed, and lets the bare loop train between two turns of Lightning's."""

        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            loader = copy.copy(trainer.train_dataloader)
            loader.load_state_dict({"batches_given": 0})
            self.bare = train_bare(copy.deepcopy(pl_module.model), iter(loader))
            self.turn_start = time.perf_counter()

        def on_train_batch_end(self, trainer: Any, *arguments: Any) -> None:
            super().on_train_batch_end(trainer, *arguments)
            if trainer.global_step % config.training_steps == 0:
                now = time.perf_counter()
                turns.append((frames / (now - self.turn_start), per_second(frames, self._train_bare)))
                self.turn_start = time.perf_counter()

        def _train_bare(self) -> None:
            self.bare(config.training_steps)

    settings = TrainConfig(
        name=f"training-{units}",
        runs=folder,
        data=DataConfig(corpus, window_frames=WINDOW_FRAMES, batch_size=BATCH_SIZE),
        model=_network_2017(units),
        optim=OptimConfig(clip_norm=None),
        stop=StopConfig(steps=(config.turns + 1) * config.training_steps),
        # As short as can be: none of it is measured.
        samples=SamplesConfig(every_epochs=0, prompts=1, frames=2),
        # Rows and points in every turn, where the default is every 50 steps.
        log_every_steps=config.training_steps,
        compute=ComputeConfig(accelerator="cpu", threads=1),
        wandb=WandbConfig(mode="offline"),
    )
    with mock.patch.object(babble.train, "Speed", Turns), redirect_stdout(io.StringIO()):
        train(settings)
    ours, bare = zip(*turns[1:], strict=True)
    note = f"batches of {BATCH_SIZE}, one thread; metrics.jsonl and W&B offline every {config.training_steps} steps"
    return [Figure(f"training, 2017 3x{units}", "frames/s", ours, bare, at_least=0.95, note=note)]


def measure_training(config: BenchmarkConfig, folder: Path) -> list[Figure]:
    """Return the speed of `train` beside a bare loop's: in one process, on the same batches, turn by turn."""
    figures = []
    corpus = make_corpus(folder, config.corpus_hours)
    for units in config.training_units:
        say(f"training: 3x{units}")
        figures += in_own_process(_measure_training, units, config, corpus, folder)
    return figures


def _measure_logging(config: BenchmarkConfig, corpus: Path, folder: Path) -> list[Figure]:
    import babble.train
    from babble.train import ComputeConfig, StopConfig, TrainConfig, train
    from babble.training.metrics import Speed
    from babble.training.samples import SamplesConfig
    from babble.training.wandb_run import WandbConfig

    recipe = read_config(TrainConfig, ["--config", str(DEFAULT_RECIPE)])
    frames = config.logging_steps * recipe.data.batch_size * recipe.data.window_frames
    moments: list[tuple[float, float, float]] = []

    class Turns(Speed):
        """Stands in for the training's own Speed, and turns all logging off and on after each row of figures."""

        def on_train_batch_start(self, trainer: Any, pl_module: Any, *_: Any) -> None:
            # A row is written between the end of a step and the start of the next.
            if trainer.global_step % config.logging_steps:
                return
            moments.append((time.perf_counter(), *spent_cpu_seconds()))
            is_logged = len(moments) % 2 == 1
            trainer.log_every_n_steps = config.logging_steps if is_logged else sys.maxsize
            pl_module.log = self.log if is_logged else lambda *args, **kwargs: None

        def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
            self.log = pl_module.log

    settings = replace(
        recipe,
        name="logging",
        runs=folder,
        data=replace(recipe.data, shards=corpus),
        # One more step, before which the last turn ends.
        stop=StopConfig(steps=2 * (config.turns + 1) * config.logging_steps + 1),
        # As short as can be: none of it is measured.
        samples=SamplesConfig(every_epochs=0, prompts=1, frames=2),
        log_every_steps=config.logging_steps,
        compute=ComputeConfig(accelerator="cpu", threads=1),
        wandb=WandbConfig(mode="offline"),
    )
    with mock.patch.object(babble.train, "Speed", Turns), redirect_stdout(io.StringIO()):
        train(settings)
    seconds, ours, wandbs = np.diff(np.array(moments), axis=0)[2:].T
    speeds, cpu = (frames / seconds).tolist(), (ours + wandbs).tolist()
    name = f"logging, {DEFAULT_RECIPE.stem}"
    note = f"metrics.jsonl and W&B offline, a row every {config.logging_steps} steps, one thread; beside it no self.log"
    apart = f"of it W&B's own processes {wandbs.sum() / sum(cpu):.1%}, which run in both turns"
    return [
        Figure(name, "frames/s", tuple(speeds[::2]), tuple(speeds[1::2]), at_least=0.97, note=note),
        Figure(f"{name}, CPU time", "CPU s", tuple(cpu[::2]), tuple(cpu[1::2]), at_most=1.03, note=apart),
    ]


def measure_logging(config: BenchmarkConfig, folder: Path) -> list[Figure]:
    """Return the speed of a training that logs as by default, beside its speed without, turn by turn in one process."""
    from babble.train import TrainConfig

    say("logging")
    data = read_config(TrainConfig, ["--config", str(DEFAULT_RECIPE)]).data
    # One epoch, as what lies between two is no training.
    frames = 2 * (config.turns + 2) * config.logging_steps * data.batch_size * data.window_frames
    corpus = make_corpus(folder, frames / MODE.frames_per_second / 3600)
    return in_own_process(_measure_logging, config, corpus, folder)


# ---- 4. generation


def bare_babble(model: "Babbler", prompts_BTF: np.ndarray, seed: int = 0) -> Callable[[int], np.ndarray]:
    """Return a function that gives the next so many frames (N, B, F): the floor, plain tensors and fused cells.

    One product a layer and one for the head. Regression: the nearest legal level. Categorical: of all levels of a
    field, the first to arrive in a race at the speeds of their probabilities, which is a draw of one.
    """
    import torch

    mode: Mode = model.mode
    is_regression = model.config.head == "regression"
    layers: Any = model.layers
    dense: Any = model.head.dense
    embedding: Any = model.input
    table: Any = None if is_regression else embedding.table.weight
    with torch.inference_mode():
        hidden_BTH, states = model(torch.from_numpy(prompts_BTF.astype(np.int64)))
        x = hidden_BTH[:, -1]
        hs, cs = [h for h, _ in states], [c for _, c in states]
        weights = [
            torch.cat([layer.rnn.weight_ih_l0, layer.rnn.weight_hh_l0], dim=1).t().contiguous() for layer in layers
        ]
        biases = [layer.rnn.bias_ih_l0 + layer.rnn.bias_hh_l0 for layer in layers]
        head, head_bias = dense.weight.t().contiguous(), dense.bias
        highest = torch.tensor(mode.levels - 1, dtype=torch.float32)
        generator = torch.Generator().manual_seed(seed)
        first_rows = torch.tensor([0, *mode.levels.cumsum()[:-1]])
        most = int(mode.levels.max())
        # Every field as wide as the widest: behind its last level stands its first again, which never comes first.
        levels_FV = torch.arange(most) * (torch.arange(most) < torch.tensor(mode.levels)[:, None])
        columns_FV = (first_rows[:, None] + levels_FV).flatten()

    @torch.inference_mode()
    def babble(frames: int) -> np.ndarray:
        nonlocal x
        made = []
        for _ in range(frames):
            out = torch.addmm(head_bias, x, head)
            if is_regression:
                levels = torch.minimum(out.relu_().mul_(highest).round_(), highest)
                x = levels / highest
            else:
                # Logarithms of how early each arrives.
                scores = out.sub_(torch.empty_like(out).exponential_(generator=generator).log_())
                levels = scores.index_select(1, columns_FV).view(len(out), -1, most).argmax(dim=-1)
                x = torch.nn.functional.embedding_bag(levels + first_rows, table, mode="sum")
            made.append(levels)
            for n, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
                i, f, g, o = torch.addmm(bias, torch.cat([x, hs[n]], dim=1), weight).chunk(4, dim=1)
                cs[n] = f.sigmoid_().mul_(cs[n]).addcmul_(i.sigmoid_(), g.tanh_())
                x = hs[n] = o.sigmoid_().mul_(cs[n].tanh())
        return torch.stack(made).numpy().astype(mode.dtype)

    return babble


def make_run(folder: Path, model: "Babbler") -> RunFolder:
    """Return a run folder that holds an untrained network."""
    import torch

    run = RunFolder(folder)
    run.claim({})
    weights = {f"model.{key}": value for key, value in model.state_dict().items()}
    about = {"model": asdict(model.config), "mode": MODE.name}
    kept = {"state_dict": weights, "hyper_parameters": about, "epoch": 0, "global_step": 0}
    torch.save(kept, run.checkpoint("best"))
    return run


def plain_babble(model: "Babbler", prompts_BTF: np.ndarray, seed: int = 0) -> Callable[[int], np.ndarray]:
    """Return a function that gives the next so many frames (N, B, F) of an autoregressive head, as one first writes it.

    The network's own forward pass on each frame, then field by field a softmax and a draw from it.
    """
    import torch

    head: Any = model.head
    generator = torch.Generator().manual_seed(seed)
    with torch.inference_mode():
        hidden_BTH, state = model(torch.from_numpy(prompts_BTF.astype(np.int64)))
        earlier_LK = head.earlier_LK * head.is_earlier_LK

    @torch.inference_mode()
    def babble(frames: int) -> np.ndarray:
        nonlocal hidden_BTH, state
        made = []
        for _ in range(frames):
            hidden_BK = head.past(hidden_BTH[:, -1])
            levels = []
            for f, out in enumerate(head.outs):
                piece = hidden_BK[:, f * head.units_per_field : (f + 1) * head.units_per_field]
                level = torch.multinomial(out(piece.relu()).softmax(dim=-1), 1, generator=generator)[:, 0]
                hidden_BK = hidden_BK + earlier_LK[head.first_F[f] + level]
                levels.append(level)
            frames_BF = torch.stack(levels, dim=-1)
            made.append(frames_BF)
            hidden_BTH, state = model(frames_BF[:, None], state)
        return torch.stack(made).numpy().astype(model.mode.dtype)

    return babble


def _measure_generation(config: BenchmarkConfig, folder: Path) -> list[Figure]:
    stay_on_one_core()
    import torch

    from babble.codec.codec2 import write_c2
    from babble.codec.frames import unpack_packets
    from babble.generation.free_run import BLOCK_FRAMES, iterate_babble
    from babble.model.babbler import Babbler, ModelConfig
    from babble.train import TrainConfig

    (packets,) = itertools.islice(encode_bare(sorted(SPEECH.glob("*.ogg"))), 1)
    prompt = unpack_packets(packets, MODE)[:PROMPT_FRAMES]
    networks = {
        f"2017 3x{config.units}": _network_2017(config.units),
        f"categorical 3x{config.units}": ModelConfig(units=config.units, head="categorical"),
        DEFAULT_RECIPE.stem: read_config(TrainConfig, ["--config", str(DEFAULT_RECIPE)]).model,
    }

    def measure_streams(name: str, model: Babbler, streams: int, frames: int) -> list[Figure]:
        # Whole blocks, as a block is made when the first of its frames is asked for.
        frames = BLOCK_FRAMES * math.ceil(frames / BLOCK_FRAMES)
        prompts = np.repeat(prompt[None], streams, axis=0)
        is_default = name == DEFAULT_RECIPE.stem
        stream, bare = iterate_babble(model, prompts), (plain_babble if is_default else bare_babble)(model, prompts)
        ours, floors = take_turns(
            config.turns,
            lambda: per_second(frames * streams, lambda: list(itertools.islice(stream, frames))),
            lambda: per_second(frames * streams, lambda: bare(frames)),
        )
        note = f"{statistics.median(ours) / MODE.frames_per_second:,.0f} x real time, one core"
        name = f"generation, {name}, {streams} at once"
        figures = [Figure(name, "frames/s", ours, floors, at_least=0.8, note=note)]
        if is_default:
            wanted = 20 * MODE.frames_per_second if streams == 1 else 5000
            figures.append(Figure(f"{name}, by itself", "frames/s", ours, at_least=wanted, note=note))
        return figures

    figures = []
    for name, shape in networks.items():
        say(f"generation: {name}")
        torch.manual_seed(0)
        model = Babbler(shape, MODE).eval()
        figures += measure_streams(name, model, 1, config.frames)
        figures += measure_streams(name, model, STREAMS, config.frames // 10)
        run = make_run(folder / name, model)
        write_c2(run.prompts / "1.c2", prompt, MODE)
        command = [sys.executable, "-m", "babble.generate", str(run.path), "--seconds", str(config.seconds)]
        usage = in_own_process(measure_command, [*command, "--out", str(folder / f"{name}.wav")])
        inner = json.loads((folder / f"{name}.json").read_text())["times_real_time"]
        figures.append(
            Figure(
                f"python -m babble.generate, {name}",
                "x real time",
                (config.seconds / usage.wall_seconds,),
                note=f"{config.seconds:g} s in {usage.wall_seconds:.1f} s, start and picture too; {inner:g} x by "
                "its own clock, which counts the loop and the decoder",
            )
        )
    return figures


def measure_generation(config: BenchmarkConfig, folder: Path) -> list[Figure]:
    """Return the speed of free running, one stream and many, beside a bare loop's on the same core."""
    return in_own_process(_measure_generation, config, folder)


# ---- evaluation


def measure_evaluation(config: BenchmarkConfig, folder: Path) -> list[Figure]:
    """Return how long the likelihood of an hour of held-out speech takes the whole command, on all cores."""
    import torch

    from babble.model.babbler import Babbler
    from babble.train import TrainConfig

    say("evaluation")
    corpus = make_corpus(folder, config.held_out_hours, config.held_out_hours)
    torch.manual_seed(0)
    shape = read_config(TrainConfig, ["--config", str(DEFAULT_RECIPE)]).model
    run = make_run(folder / "run", Babbler(shape, MODE))
    command = [sys.executable, "-m", "babble.evaluate", str(run.path), "--shards", str(corpus)]
    seconds = tuple(
        in_own_process(measure_command, [*command, "--babble_seconds", "0"]).wall_seconds / config.held_out_hours
        for _ in range(min(3, config.turns))
    )
    note = f"{config.held_out_hours:g} h, start and baselines too, {os.cpu_count()} cores"
    return [Figure(f"evaluation, {DEFAULT_RECIPE.stem}", "s an hour of speech", seconds, at_most=60, note=note)]


# ---- all together


def measure(config: BenchmarkConfig) -> list[Figure]:
    """Return every figure that is asked for, in order of the parts."""
    parts: tuple[Callable[[BenchmarkConfig, Path], list[Figure]], ...] = (
        *(measure_preprocess, measure_data, measure_training, measure_logging, measure_generation, measure_evaluation),
        lambda config, folder: measure_nodes(folder, config.pairs or 3, config.speech_hours),
        lambda config, folder: measure_ranks(folder, config.turns, config.rank_steps),
        lambda config, folder: measure_stopping(folder, config.turns),
        lambda config, folder: measure_sweep(folder, min(3, config.turns), config.trials, config.trial_steps),
        lambda config, folder: measure_streaming(folder, config.streamed_hours),
        lambda config, folder: measure_rates(folder),
    )
    figures = []
    for name, part in zip(PARTS, parts, strict=True):
        if name in config.only:
            with tempfile.TemporaryDirectory(prefix="babble-benchmark-") as folder:
                figures += part(config, Path(folder))
    return figures


def _work(config: BenchmarkConfig) -> None:
    if sys.platform != "linux":
        raise ValueError("the benchmark reads /proc: it needs Linux.")
    watch_for_sigterm()
    start = time.monotonic()
    load = os.getloadavg()[0]
    figures = measure(config)
    minutes = (time.monotonic() - start) / 60
    about = environment()
    print(format_table(figures))
    if "plan" in config.only:
        print(format_plan({figure.name: figure.median for figure in figures}, config.device_frames))
    print(f"{about['machine']}, git {about['git']}; load {load:.1f} before it began; {minutes:.1f} minutes")
    if config.json:
        found = {"environment": about, "config": config_to_dict(config), "minutes": minutes, "load_before": load}
        config.json.write_text(json.dumps({**found, "figures": [f.to_dict() for f in figures]}, indent=2) + "\n")


if __name__ == "__main__":
    run_command(BenchmarkConfig, _work, COMMAND)
