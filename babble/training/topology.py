"""How many processes train together: one, several on this machine, or the tasks of Slurm's `srun`; and losing one.

Only this module reads Slurm's variables. They are also set in the batch script itself, but other processes are started
only by `srun`, so only its tasks are taken as ranks.
"""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass

from babble.cli import CommandError
from babble.processes import end_with_parent


@dataclass(frozen=True)
class Topology:
    """Number of processes, and who starts them.

    Attributes:
        nodes: number of nodes.
        devices: processes per node.
        is_started_by_srun: whether Slurm starts all processes; if not, the first process starts the others.
    """

    nodes: int
    devices: int
    is_started_by_srun: bool

    @property
    def world_size(self) -> int:
        """Number of processes on all nodes."""
        return self.nodes * self.devices


def find_topology(devices: int | None, nodes: int | None) -> Topology:
    """Return how many processes train together.

    Args:
        devices: processes per node, as set by the user; None for the number that Slurm started, else 1.
        nodes: number of nodes, likewise.

    Raises:
        ValueError: Slurm started other numbers than the user set; or several nodes without Slurm.
    """
    tasks, step_nodes = (int(os.environ.get(f"SLURM_STEP_NUM_{what}", 1)) for what in ("TASKS", "NODES"))
    if tasks == 1:
        if nodes not in (None, 1):
            raise ValueError(
                f"compute.nodes={nodes}: only Slurm can start processes on several nodes. Use sbatch --nodes={nodes} "
                "slurm/train.sh, which is in babble's repository."
            )
        return Topology(1, devices or 1, is_started_by_srun=False)
    topology = Topology(step_nodes, tasks // step_nodes, is_started_by_srun=True)
    if topology.world_size != tasks:
        raise ValueError(
            f"Slurm started {tasks} tasks on {step_nodes} nodes, but every node needs the same number. Set it with "
            "--ntasks-per-node."
        )
    for key, wanted, found, flag in (
        ("devices", devices, topology.devices, "--ntasks-per-node"),
        ("nodes", nodes, topology.nodes, "--nodes"),
    ):
        if wanted not in (None, found):
            raise ValueError(
                f"compute.{key}={wanted}, but Slurm started {found}: give sbatch {flag}={wanted}, or train with "
                f"--compute.{key} {found}."
            )
    return topology


def job_id() -> str | None:
    """Return the id of this Slurm job, the same over requeues: 17, in an array 17_3; None outside Slurm."""
    job = os.environ.get("SLURM_ARRAY_JOB_ID", os.environ.get("SLURM_JOB_ID"))
    task = os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{job}_{task}" if job and task else job


def bind_to_first_process(*, is_first: bool) -> None:
    """Have a process that the first one starts end with it. Before they are connected, it would wait for many minutes.

    Raises:
        CommandError: the first process has ended already.
    """
    if is_first:
        # For the processes that it starts.
        os.environ["BABBLE_FIRST_PROCESS"] = str(os.getpid())
        return
    end_with_parent()
    if os.environ.get("BABBLE_FIRST_PROCESS", "") not in ("", str(os.getppid())):
        raise CommandError("the first process of this training has ended.")


@contextlib.contextmanager
def naming_lost_processes() -> Iterator[None]:
    """Turn the error of a collective whose other processes have ended into one message.

    Raises:
        CommandError: another process has ended, which only it can explain.
    """
    try:
        yield
    except RuntimeError as error:
        # Imported already by what raised it; a command line is read without it.
        import torch

        # Gloo has no class of its own.
        if not isinstance(error, torch.distributed.DistError) and "gloo/transport" not in str(error):
            raise
        raise CommandError(
            "another process of this training has failed or was killed: see its message. The same command continues "
            f"from the last checkpoint. ({str(error).splitlines()[0]})"
        ) from None
