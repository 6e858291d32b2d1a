"""Fixtures: a real Slurm cluster of three nodes on this machine."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from testbed import TESTBED, Slurm, find_obstacle, start_cluster, stop_cluster


@pytest.fixture(scope="session")
def cluster() -> Iterator[None]:
    """Start the cluster, and stop it after the last test."""
    if not TESTBED.is_file():
        pytest.skip("no Slurm cluster can be made here: BABBLE_SLURM_TESTBED is not set")
    if obstacle := find_obstacle():
        pytest.skip(f"no Slurm cluster can be made here: {obstacle}")
    yield
    stop_cluster()


@pytest.fixture
def slurm(cluster: None, tmp_path: Path) -> Slurm:
    """The cluster with all its nodes running, used from an empty folder."""
    start_cluster()
    return Slurm(tmp_path)
