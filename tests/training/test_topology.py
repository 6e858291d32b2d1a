"""How many processes train together, and what is rejected."""

import pytest

from babble.training.topology import Topology, find_topology, job_id


@pytest.fixture(autouse=True)
def _outside_slurm(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("STEP_NUM_TASKS", "STEP_NUM_NODES", "JOB_ID", "ARRAY_JOB_ID", "ARRAY_TASK_ID"):
        monkeypatch.delenv(f"SLURM_{name}", raising=False)


def _start_with_srun(monkeypatch: pytest.MonkeyPatch, nodes: int, tasks: int) -> None:
    monkeypatch.setenv("SLURM_STEP_NUM_NODES", str(nodes))
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", str(tasks))


def test_without_slurm_the_number_of_processes_is_the_users():
    assert find_topology(None, None) == Topology(nodes=1, devices=1, is_started_by_srun=False)
    assert find_topology(2, None) == Topology(nodes=1, devices=2, is_started_by_srun=False)
    assert find_topology(2, 1).world_size == 2
    with pytest.raises(ValueError, match=r"only Slurm can start processes on several nodes. Use sbatch --nodes=3"):
        find_topology(None, 3)


def test_srun_sets_the_number_of_processes(monkeypatch: pytest.MonkeyPatch):
    _start_with_srun(monkeypatch, nodes=2, tasks=8)
    assert find_topology(None, None) == find_topology(4, 2) == Topology(nodes=2, devices=4, is_started_by_srun=True)
    with pytest.raises(ValueError, match=r"compute.devices=2, but Slurm started 4: .*--ntasks-per-node=2"):
        find_topology(2, None)
    with pytest.raises(ValueError, match=r"compute.nodes=1, but Slurm started 2: .*--nodes=1"):
        find_topology(None, 1)


def test_a_single_task_starts_the_others_itself(monkeypatch: pytest.MonkeyPatch):
    _start_with_srun(monkeypatch, nodes=1, tasks=1)
    assert find_topology(2, None) == Topology(nodes=1, devices=2, is_started_by_srun=False)


def test_uneven_nodes_are_rejected(monkeypatch: pytest.MonkeyPatch):
    _start_with_srun(monkeypatch, nodes=2, tasks=3)
    with pytest.raises(ValueError, match="3 tasks on 2 nodes"):
        find_topology(None, None)


def test_the_id_of_a_job_or_array_task(monkeypatch: pytest.MonkeyPatch):
    assert job_id() is None
    monkeypatch.setenv("SLURM_JOB_ID", "19")
    assert job_id() == "19"
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "17")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    assert job_id() == "17_3"
