"""A real Slurm of three nodes on this machine, for the tests of slurm/."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from testbed import TESTBED, Slurm, bring, why_not


@pytest.fixture(scope="session")
def cluster() -> Iterator[None]:
    """Bring the cluster up, and down again."""
    if not TESTBED.is_file():
        pytest.skip("no Slurm cluster can be made here: no testbed is at hand")
    if cause := why_not():
        pytest.skip(f"no Slurm cluster can be made here: {cause}")
    yield
    bring("down")


@pytest.fixture
def slurm(cluster: None, tmp_path: Path) -> Slurm:
    """The cluster with all of its nodes, seen from an empty folder."""
    bring("up")
    return Slurm(tmp_path)
