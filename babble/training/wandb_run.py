"""The W&B run of a training or a preprocessing: opened, filled, and allowed to fail. No torch.

    wandb = open_wandb(WandbConfig(), folder, "tale", settings, job_type="train")
    if wandb: wandb.log({"train/loss": 1.0, STEP: 0})

1. `open_wandb` opens it: online if there is an API key, else offline; also offline if the server does not answer.
2. `WandbRun` logs metrics, samples and files. If W&B fails, one line is printed once and nothing more is sent:
   metrics.jsonl and the rest of the run folder are complete without W&B, and the work continues.
3. `close` gives W&B up to a minute to send what it holds, and ends its process.

Curves are plotted over `trainer/global_step`, which a resumed run and the trials of a sweep share.
"""

import contextlib
import os
import re
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from babble.codec.frames import SAMPLE_RATE_HZ

STEP = "trainer/global_step"
SAMPLES = "samples/samples"
# The file in a run folder that holds the id of its W&B run.
WANDB_ID = "wandb_id"
# By default W&B waits a minute and a half at the start, and forever at the end.
OPEN_SECONDS = 20.0
CLOSE_SECONDS = 60.0

Mode = Literal["online", "offline", "off"]


@dataclass(frozen=True)
class WandbConfig:
    """W&B settings.

    Attributes:
        mode: auto: the value of WANDB_MODE, else online if there is an API key for the server, else offline.
        project: W&B project.
        entity: W&B team or user; that of the API key if omitted.
        group: Name under which W&B groups runs; recipe or sweep if omitted.
    """

    mode: Literal["auto", "online", "offline", "off"] = "auto"
    project: str = "babble"
    entity: str | None = None
    group: str | None = None

    def find_mode(self) -> Mode:
        """Return how to log: "auto" resolved by WANDB_MODE, then by whether there is an API key."""
        if self.mode != "auto":
            return self.mode
        wanted = os.environ.get("WANDB_MODE")
        if wanted == "disabled":
            return "off"
        if wanted:
            return "online" if wanted == "online" else "offline"
        return "online" if has_wandb_key() else "offline"


def has_wandb_key() -> bool:
    """Return whether W&B has an API key for its server: in WANDB_API_KEY, its settings, or netrc.

    WANDB_BASE_URL or `wandb login --host` names a self-hosted server.
    """
    try:
        from wandb.sdk import wandb_setup
        from wandb.sdk.lib import wbauth

        settings = wandb_setup.singleton().settings
        return bool(settings.api_key or wbauth.read_netrc_auth(host=settings.base_url))
    except (ImportError, AttributeError, TypeError):  # Another version of W&B keeps them elsewhere.
        return bool(os.environ.get("WANDB_API_KEY"))
    except Exception:  # Of any other kind, e.g. half a key: opening the run fails too, and reports it.
        return True


class WandbRun:
    """A run of W&B whose failures are harmless.

    Args:
        run: W&B's own object.
        is_online: whether data is sent to the server at once.
    """

    def __init__(self, run: Any, is_online: bool) -> None:
        self.is_online = is_online
        self.is_lost = False
        self._run = run
        self._samples: Any = None

    @property
    def url(self) -> str | None:
        """The run's page; None offline."""
        urls: list[str | None] = [None]
        self._attempt(lambda: urls.append(self._run.url))
        return urls[-1]

    def log(self, metrics: Mapping[str, Any]) -> None:
        """Add a point to the curves with these names: numbers, or W&B's own media."""
        self._attempt(lambda: self._run.log(dict(metrics)))

    def log_samples(
        self,
        name: str,
        step: int,
        folder: Path,
        statistics: Sequence[Mapping[str, float | None]],
        real: Sequence[Mapping[str, float | None]],
    ) -> None:
        """Log samples: each clip and its plot, the progression plot, and one row per clip in the table of samples.

        Args:
            name: "real", or the epoch as in "epoch-0060".
            step: optimizer step.
            folder: what `SampleWriter` wrote.
            statistics: speech statistics of each clip.
            real: those of the recording at the same prompts.
        """

        def send() -> None:
            import wandb

            prefix = "samples/real" if name == "real" else "samples"
            media: dict[str, Any] = {f"{prefix}/progression": wandb.Image(str(folder / "progression.png"))}
            if self._samples is None:
                columns: list[str | int] = ["source", "prompt", "audio", "plot"]
                columns += [title for statistic in real[0] for title in (statistic, f"{statistic}, real")]
                # Only new rows are sent.
                self._samples = wandb.Table(columns=columns, log_mode="INCREMENTAL")
            for number, (generated, reference) in enumerate(zip(statistics, real, strict=True), 1):
                audio = wandb.Audio(str(folder / f"{number}.wav"), sample_rate=SAMPLE_RATE_HZ)
                plot = wandb.Image(str(folder / f"{number}.png"))
                media |= {f"{prefix}/{number}": audio, f"{prefix}/{number}_plot": plot}
                pairs = [of.get(statistic) for statistic in real[0] for of in (generated, reference)]
                self._samples.add_data(name, number, audio, plot, *pairs)
            self._run.log({**media, SAMPLES: self._samples, STEP: step})

        self._attempt(send)

    def log_corpus(
        self,
        metrics: Mapping[str, float],
        histograms: Mapping[str, np.ndarray],
        failures: Sequence[Mapping[str, str]],
    ) -> None:
        """Log what a preprocessing made.

        Args:
            metrics: by name.
            histograms: number of occurrences of each level of a field, int64 (V,), by name.
            failures: unusable recordings, each with "name" and "cause".
        """

        def send() -> None:
            import wandb

            table = wandb.Table(columns=["recording", "cause"], data=[[f["name"], f["cause"]] for f in failures])
            plots = {
                name: wandb.Histogram(np_histogram=(counts, np.arange(len(counts) + 1)))
                for name, counts in histograms.items()
            }
            self._run.log({**metrics, **plots, "corpus/failed": table})

        self._attempt(send)

    def log_file(self, path: Path, name: str, kind: str) -> None:
        """Log a file as an artifact; the file itself is sent, not a copy. Its name is changed to what W&B accepts."""

        def send() -> None:
            import wandb

            artifact = wandb.Artifact(re.sub(r"[^\w.-]", "-", name, flags=re.ASCII)[:128], type=kind)
            artifact.add_file(str(path.resolve()), policy="immutable")
            self._run.log_artifact(artifact)

        self._attempt(send)

    def summarize(self, metrics: Mapping[str, Any]) -> None:
        """Set metrics of the run as a whole."""
        self._attempt(lambda: self._run.summary.update(dict(metrics)))

    def close(self, notes: str | None = None) -> None:
        """Let W&B send what it holds, and end its process.

        Args:
            notes: notes of the run; None keeps the present ones.
        """
        if notes is not None:
            self._attempt(lambda: setattr(self._run, "notes", notes))
        self._attempt(lambda: self._run.finish())

    def _attempt(self, work: Callable[[], object]) -> None:
        if self.is_lost:
            return
        try:
            work()
        except Exception as error:  # Of any kind: a dashboard must not end a training.
            self.is_lost = True
            _warn(f"W&B failed ({_first_line(error)}): its curves end here. The run folder has everything.")
            _give_up()


def open_wandb(
    config: WandbConfig,
    folder: Path,
    name: str,
    settings: Mapping[str, Any],
    job_type: str,
    notes: str | None = None,
    tags: Sequence[str] = (),
) -> WandbRun | None:
    """Return an open run; None if W&B is off, or fails, which is reported in one line.

    Args:
        config: W&B settings.
        folder: gets W&B's own folder, and a file with the run's id, so that resumed work is the same W&B run.
        name: of the run.
        settings: all settings, nested.
        job_type: "train" or "preprocess".
        notes: of the run.
        tags: by which runs can be filtered.
    """
    about = {"name": name, "group": config.group, "config": settings, "job_type": job_type, "notes": notes}
    return _open(config, folder, {**about, "tags": list(tags)})


def reopen_wandb(config: WandbConfig, folder: Path) -> WandbRun | None:
    """Return the W&B run of a folder, its name, settings and tags unchanged; None without one, and as `open_wandb`.

    Args:
        config: W&B settings; project and entity must be those of the run.
        folder: the folder that `open_wandb` was given.
    """
    return _open(config, folder, {}) if (folder / WANDB_ID).is_file() else None


def _open(config: WandbConfig, folder: Path, about: dict[str, Any]) -> WandbRun | None:
    mode = config.find_mode()
    if mode == "off":
        return None
    # By default, copies of the files in tables, and W&B's own logs, would be left in the home folder.
    for variable in ("WANDB_DATA_DIR", "WANDB_CACHE_DIR"):
        os.environ.setdefault(variable, str(folder.resolve() / "wandb"))
    id_file = folder / WANDB_ID
    if not id_file.is_file():
        id_file.write_text(os.urandom(4).hex())
    options: dict[str, Any] = {
        "dir": folder,
        "id": id_file.read_text(),
        "resume": "allow",
        "project": config.project,
        "entity": config.entity,
        **about,
    }
    try:
        run, is_online = _init(options, mode)
        run.define_metric(STEP)
        run.define_metric("*", step_metric=STEP, step_sync=True)
    except Exception as error:  # As above.
        _warn(f"W&B failed ({_first_line(error)}): continuing without it. The run folder has everything.")
        return None
    return WandbRun(run, is_online)


def _init(options: dict[str, Any], mode: Mode) -> tuple[Any, bool]:
    """Return W&B's own object, and whether it is online; offline if the server can't be reached."""
    import wandb

    # W&B itself prints nothing; what babble prints goes to its Logs tab too.
    quiet: dict[str, Any] = {"silent": True, "console": "wrap"}
    if mode == "online":
        limits = {"init_timeout": OPEN_SECONDS, "finish_timeout": CLOSE_SECONDS, "finish_timeout_raises": True}
        try:
            return wandb.init(**options, mode="online", settings=wandb.Settings(**quiet | limits)), True
        except wandb.Error as error:
            _warn(f"W&B can't be reached ({_first_line(error)}): logging offline.")
            _give_up()
    return wandb.init(**options, mode="offline", settings=wandb.Settings(**quiet)), False


def describe_wandb(wandb: WandbRun | None, folder: Path) -> str:
    """Return where a run is logged, for its start table: online with the URL, offline, or off."""
    if wandb is None:
        return "off"
    if wandb.is_online:
        return f"online, {wandb.url or 'without a URL'}"
    return f"offline; to send it later: wandb sync {shlex.quote(str(folder / 'wandb'))}/offline-run-*"


def _give_up() -> None:
    """End W&B's process, which would otherwise try again at exit and print a traceback."""
    import wandb

    with contextlib.suppress(Exception):
        wandb.teardown()


def _warn(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
