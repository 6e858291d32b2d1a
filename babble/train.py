"""Train a network on shards.

    babble train --config babble-cpu --data.shards shards/tale --name NAME [--model.units 320]

1. Everything that can be rejected is rejected first: settings, machine, shards. Nothing has been created then.
2. The run folder runs/NAME is created. The same command again continues the run from its last checkpoint, to the same
   weights as if it had not been interrupted; other settings are rejected; a finished run does nothing.
3. Lightning trains; callbacks unfreeze layers, generate samples, save checkpoints and metrics. At the end the run is
   shown on one page, report.html.
4. Ctrl-C, SIGTERM or SIGUSR1: the current step is finished, a checkpoint saved, and the command ends with exit code
   128 + the signal's number.

On one machine the first process starts the others; on several, Slurm's `srun` does: see slurm/train.sh in
babble's repository.
"""

import contextlib
import shlex
import signal
import sys
from typing import TYPE_CHECKING, Any

from babble.cli import Interrupted, build_config, config_to_dict, run_command
from babble.codec.frames import TOKENS
from babble.data.shards import hash_manifest, read_manifest
from babble.files import check_writable, write_bytes
from babble.processes import StopRequest
from babble.run_folder import RunFolder
from babble.sweeps.folder import SweepFolder
from babble.training.config import TrainConfig
from babble.training.topology import bind_to_first_process, find_topology

if TYPE_CHECKING:
    from babble.training.trainer import TrainResult


def train(config: TrainConfig) -> "TrainResult":
    """Train, or continue, the run that the config describes, to its end.

    Example:
        train(TrainConfig(name="tale", data=DataConfig(shards=Path("shards/tale")), stop=StopConfig(epochs=20)))

    Raises:
        OSError, ValueError: settings, machine, shards or run folder do not fit; nothing has been done.
        CommandError: the run folder is in use, no checkpoint of it is valid, or the training diverged.
        Interrupted: stopped on request; the same call continues the run.
    """
    # Imported here: torch and Lightning take seconds, which --help and a refused setting need not wait for.
    from babble.training.console import quiet_lightning
    from babble.training.trainer import build_training, finish, fit, is_first_rank, read_result

    topology = find_topology(config.compute.devices, config.compute.nodes)
    if topology.world_size > 1 and not topology.is_started_by_srun:
        bind_to_first_process(is_first=is_first_rank())
    when = "after this step" if topology.world_size == 1 else "a few steps later, when all processes agree"
    request = StopRequest(f"stopping {when}")
    with request.watching(signal.SIGUSR1), quiet_lightning():
        if is_first_rank():
            _check_folder(config.run)
        training = build_training(config, topology, request)
        run = training.run
        tokens = _pack_token_level(config) if is_first_rank() else None
        # The other ranks run inside the folder that the first one holds.
        with run.locked() if is_first_rank() else contextlib.nullcontext():
            if is_first_rank():
                run.claim(config_to_dict(training.config), hash_manifest(training.data.folder), _complete)
                run.remove_leftovers()
            if run.finished.is_file():
                # A kill may have come between the two.
                if is_first_rank() and not run.report.is_file():
                    _write_report(run)
                return read_result(run)
            if is_first_rank():
                if tokens:
                    write_bytes(run.tokens, tokens)
                run.note_start()
            result = finish(training, fit(training))
            if is_first_rank():
                _write_report(run)
            return result


def _check_folder(run: RunFolder) -> None:
    """Raise if the run can't be written, or if its folder is that of a sweep."""
    check_writable(run.config, "--runs")
    if SweepFolder(run.path).settings.is_file():
        raise ValueError(f"{run.path} is a sweep of babble tune: choose another --name for the run.")


def _pack_token_level(config: TrainConfig) -> bytes | None:
    """Return the content of the run's tokens.pt; None if it has one, or needs none.

    Raises:
        FileNotFoundError, ValueError: as `pack_token_level`.
    """
    from babble.generation.token_run import pack_token_level

    run = config.run
    if not (config.token_model and config.data.tokens) or run.tokens.is_file() or run.finished.is_file():
        return None
    return pack_token_level(config.data.tokens, config.token_model)


def _complete(settings: dict[str, Any]) -> dict[str, Any]:
    return config_to_dict(build_config(TrainConfig, settings))


def _write_report(run: RunFolder) -> None:
    from babble.reporting.render import write_report

    try:
        write_report([run.path], run.report)
    except Exception as error:  # Whatever it is, a finished training must not fail because of its report.
        command = shlex.join(["babble", "report", str(run.path)])
        print(f"{run.report} could not be written: {error}\nTry: {command}", file=sys.stderr)


def _work(config: TrainConfig) -> None:
    from babble.training.trainer import is_first_rank

    try:
        result = train(config)
    except Interrupted:
        # All processes stop together, and the first one prints why. The exit code of another might end it too early.
        if is_first_rank():
            raise
        return
    if not is_first_rank():
        return
    best = f"best {result.monitor} {result.best:.4f}"
    if result.already_finished:
        print(f"{result.run} is finished: {result.steps} steps, {best}. Nothing to do.")
    else:
        print(f"{result.run}: done after {result.steps} steps, {best}.")
    print(f"Report: {shlex.quote(str(RunFolder(result.run).report))}")
    run = shlex.quote(str(result.run))
    if config.data.shards and read_manifest(config.data.shards).mode == TOKENS:
        print(f"Tokens have no sound. Next, train on frames with them: babble train --config words --token-model {run}")
    else:
        print(f"Generate speech: babble generate {run} --seconds 60 --out babble.wav")


def main() -> None:
    """Run `babble train`."""
    run_command(TrainConfig, _work, "babble train")


if __name__ == "__main__":
    main()
