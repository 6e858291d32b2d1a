"""Where a training process stands: alone, one of several on a machine, or a task of Slurm's `srun`.

Slurm's own variables are read here alone. In the batch script itself they are set too, but only `srun` starts the
other processes, so only its tasks are taken for ranks.
"""

import os
from dataclasses import dataclass


@dataclass(frozen=True)
class Topology:
    """How many processes train together, and who starts them.

    Attributes:
        nodes: machines.
        devices: processes on each of them.
        is_started_by_srun: whether Slurm started all of them; else the first process starts the others.
    """

    nodes: int
    devices: int
    is_started_by_srun: bool

    @property
    def world_size(self) -> int:
        """All processes together, the world size."""
        return self.nodes * self.devices


def find_topology(devices: int | None, nodes: int | None) -> Topology:
    """Return how many processes train together.

    Args:
        devices: processes a node, as a user sets it; None for as many as Slurm has started there, else 1.
        nodes: machines, likewise.

    Raises:
        ValueError: the user asks for other numbers than Slurm has started; or for several nodes without Slurm.
    """
    tasks, steps_nodes = (int(os.environ.get(f"SLURM_STEP_NUM_{what}", 1)) for what in ("TASKS", "NODES"))
    if tasks == 1:
        if nodes not in (None, 1):
            raise ValueError(
                f"compute.nodes={nodes}: only Slurm starts processes on several nodes: sbatch --nodes={nodes} "
                "slurm/train.sh."
            )
        return Topology(1, devices or 1, is_started_by_srun=False)
    topology = Topology(steps_nodes, tasks // steps_nodes, is_started_by_srun=True)
    if topology.world_size != tasks:
        raise ValueError(
            f"Slurm has started {tasks} tasks on {steps_nodes} nodes: every node has to have as many as any other. Say "
            "how many with --ntasks-per-node."
        )
    for key, wanted, found, flag in (
        ("devices", devices, topology.devices, "--ntasks-per-node"),
        ("nodes", nodes, topology.nodes, "--nodes"),
    ):
        if wanted not in (None, found):
            raise ValueError(
                f"compute.{key}={wanted}, but Slurm has started {found}: give sbatch {flag}={wanted}, or train with "
                f"--compute.{key} {found}."
            )
    return topology


def job_id() -> str | None:
    """Return the id of the Slurm job that this runs in, the same over requeues: 17, in an array 17_3; None outside."""
    job = os.environ.get("SLURM_ARRAY_JOB_ID", os.environ.get("SLURM_JOB_ID"))
    task = os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{job}_{task}" if job and task else job
