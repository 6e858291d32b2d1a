"""The W&B run of a training or a preprocessing: opened, fed, and given up without harm. No torch.

1. `open_wandb` opens it: online where there is a key, else offline; and offline where the server does not answer.
2. `WandbRun` takes figures, what was heard, and files. Whatever fails in W&B is told in one line, once, and from then
   on nothing more is sent: metrics.jsonl and the rest of the folder have everything, and the work goes on.
3. `close` lets W&B send what it holds, for a minute at most, and ends its process.

Figures are drawn over `trainer/global_step`, which a run that goes on, and the trials of a sweep, share.
"""

import contextlib
import netrc
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from babble.codec.frames import SAMPLE_RATE_HZ

STEP = "trainer/global_step"
SAMPLES = "samples/samples"
# W&B's own patience is a minute and a half at the start, and for ever at the end.
OPEN_SECONDS = 20.0
CLOSE_SECONDS = 60.0


@dataclass(frozen=True)
class WandbConfig:
    """Where dashboards are.

    Attributes:
        mode: "auto" is what WANDB_MODE says, else online where there is a key for W&B and offline where there is none;
            "online", "offline", "off".
        project: the W&B project.
        entity: the W&B team or user; None for the key's own.
        group: runs of one group are shown together; by default those of one recipe, or of one sweep.
    """

    mode: str = "auto"
    project: str = "babble"
    entity: str | None = None
    group: str | None = None

    def __post_init__(self) -> None:
        """Refuse unknown modes."""
        if self.mode not in ("auto", "online", "offline", "off"):
            raise ValueError(f"wandb.mode={self.mode!r} is none of auto, online, offline, off.")

    @property
    def is_online(self) -> bool:
        """Whether the server is to be asked."""
        if self.mode == "auto":
            return (os.environ.get("WANDB_MODE") or ("online" if has_wandb_key() else "offline")) == "online"
        return self.mode == "online"


def has_wandb_key() -> bool:
    """Return whether this machine has a key for W&B."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return bool(netrc.netrc().hosts.keys() & {"api.wandb.ai"})
    except (OSError, netrc.NetrcParseError):
        return False


class WandbRun:
    """A run of W&B that can fail without harm.

    Args:
        run: W&B's own.
        is_online: whether what is logged goes to the server now.
    """

    def __init__(self, run: Any, is_online: bool) -> None:
        self.is_online = is_online
        self.is_lost = False
        self._run = run
        self._samples: Any = None

    def log(self, figures: Mapping[str, Any]) -> None:
        """Add a point to the curves named: numbers, or W&B's own media."""
        self._attempt(lambda: self._run.log(dict(figures)))

    def log_samples(
        self,
        name: str,
        step: int,
        folder: Path,
        measures: Sequence[Mapping[str, float | None]],
        real: Sequence[Mapping[str, float | None]],
    ) -> None:
        """Show what was heard: each clip and its plot, the progression plot, and a row a clip in the sample table.

        Args:
            name: "real", or the epoch as in "epoch-0060".
            step: of the training.
            folder: what `SampleWriter` has kept.
            measures: of each clip how it sounds, by name.
            real: the same of the real speech at these places.
        """

        def send() -> None:
            import wandb

            where = "samples/real" if name == "real" else "samples"
            media: dict[str, Any] = {f"{where}/progression": wandb.Image(str(folder / "progression.png"))}
            if self._samples is None:
                columns: list[str | int] = ["heard", "prompt", "audio", "plot"]
                columns += [title for measure in real[0] for title in (measure, f"{measure}, real")]
                # Each samples adds its rows, and none is sent twice.
                self._samples = wandb.Table(columns=columns, log_mode="INCREMENTAL")
            for number, (ours, beside) in enumerate(zip(measures, real, strict=True), 1):
                audio = wandb.Audio(str(folder / f"{number}.wav"), sample_rate=SAMPLE_RATE_HZ)
                plot = wandb.Image(str(folder / f"{number}.png"))
                media |= {f"{where}/{number}": audio, f"{where}/{number}_plot": plot}
                pairs = [value for measure in beside for value in (ours[measure], beside[measure])]
                self._samples.add_data(name, number, audio, plot, *pairs)
            self._run.log({**media, SAMPLES: self._samples, STEP: step})

        self._attempt(send)

    def log_corpus(
        self,
        figures: Mapping[str, float],
        histograms: Mapping[str, np.ndarray],
        failures: Sequence[Mapping[str, str]],
    ) -> None:
        """Show what a preprocessing has made.

        Args:
            figures: by name.
            histograms: how often each level of a field occurs, int64 (V,), by name.
            failures: the recordings that can't be used, each with "name" and "cause".
        """

        def send() -> None:
            import wandb

            table = wandb.Table(columns=["recording", "cause"], data=[[f["name"], f["cause"]] for f in failures])
            drawn = {
                name: wandb.Histogram(np_histogram=(counts, np.arange(len(counts) + 1)))
                for name, counts in histograms.items()
            }
            self._run.log({**figures, **drawn, "corpus/failed": table})

        self._attempt(send)

    def log_file(self, path: Path, name: str, kind: str) -> None:
        """Keep a file as an artifact: the file itself, not a copy, is what is sent."""

        def send() -> None:
            import wandb

            artifact = wandb.Artifact(name, type=kind)
            artifact.add_file(str(path.resolve()), policy="immutable")
            self._run.log_artifact(artifact)

        self._attempt(send)

    def summarize(self, figures: Mapping[str, Any]) -> None:
        """Set figures of the run as a whole."""
        self._attempt(lambda: self._run.summary.update(dict(figures)))

    def close(self, notes: str | None = None) -> None:
        """Let W&B send what it holds, and end its process.

        Args:
            notes: of the run; None leaves those that it has.
        """
        if notes is not None:
            self._attempt(lambda: setattr(self._run, "notes", notes))
        self._attempt(lambda: self._run.finish())

    def _attempt(self, work: Callable[[], object]) -> None:
        if self.is_lost:
            return
        try:
            work()
        except Exception as error:  # Of whatever kind: a dashboard is no reason to end a training.
            self.is_lost = True
            _say(f"W&B has failed ({_first_line(error)}): its curves end here. The run folder has everything.")
            _give_up()


def open_wandb(
    config: WandbConfig, folder: Path, name: str, settings: Mapping[str, Any], **about: Any
) -> WandbRun | None:
    """Return an open run, or None where W&B is off or fails, which is told in one line.

    Args:
        config: where to.
        folder: holds W&B's own folder, and the run's id, so that work that goes on is the same run.
        name: the run's.
        settings: every one, nested.
        about: more of what `wandb.init` takes.
    """
    if config.mode == "off":
        return None
    # Copies of what tables hold would otherwise lie in the home folder, and stay behind.
    os.environ.setdefault("WANDB_DATA_DIR", str(folder.resolve() / "wandb"))
    id_file = folder / "wandb_id"
    if not id_file.is_file():
        id_file.write_text(os.urandom(4).hex())
    options = about | {
        "dir": folder,
        "name": name,
        "id": id_file.read_text(),
        "resume": "allow",
        "project": config.project,
        "entity": config.entity,
        "group": config.group,
        "config": settings,
    }
    try:
        import wandb

        quiet: dict[str, Any] = {"silent": True, "console": "off"}
        patient = quiet | {"init_timeout": OPEN_SECONDS, "finish_timeout": CLOSE_SECONDS, "finish_timeout_raises": True}
        run, is_online = None, config.is_online
        if is_online:
            try:
                run = wandb.init(**options, mode="online", settings=wandb.Settings(**patient))
            except wandb.Error as error:
                is_online = False
                offline = folder / "wandb" / "offline-run-*"
                _say(f"W&B can't be used ({_first_line(error)}): logging offline. For later: wandb sync {offline}")
                _give_up()
        run = run or wandb.init(**options, mode="offline", settings=wandb.Settings(**quiet))
        run.define_metric(STEP)
        run.define_metric("*", step_metric=STEP, step_sync=True)
    except Exception as error:  # As above.
        _say(f"W&B has failed ({_first_line(error)}): going on without it. The run folder has everything.")
        return None
    return WandbRun(run, is_online)


def _give_up() -> None:
    """End W&B's process, which would try once more at the very end, with a traceback."""
    import wandb

    with contextlib.suppress(Exception):
        wandb.teardown()


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
