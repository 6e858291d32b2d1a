"""The one way in which babble starts Ray: on this machine, or by connecting to a running cluster.

    cores = start_ray(address=None, cores=2, object_store_bytes=80 << 20)

Imports neither Ray nor torch before it is asked to.
"""

import os
import socket
import sys
import time
from typing import Any

from babble.cli import CommandError

# Ray refuses a smaller object store.
MIN_OBJECT_STORE_BYTES = 80 << 20
# How long the nodes of a cluster may take to join it.
NODES_SECONDS = 60.0


def start_ray(
    address: str | None = None,
    *,
    cores: int | None = None,
    object_store_bytes: int = MIN_OBJECT_STORE_BYTES,
    nodes: int = 1,
) -> int:
    """Start Ray on this machine, or connect to a cluster; return how many cores it has.

    Args:
        address: a running cluster, host:port or "auto"; None starts Ray here.
        cores: cores to use of this machine; None for all that this process may use.
        object_store_bytes: size of the object store started here.
        nodes: nodes of the cluster to wait for, `NODES_SECONDS` at most.

    Raises:
        CommandError: the cluster can't be reached, or Ray can't be started.
    """
    # Accelerators stay visible to tasks that ask for none, and no usage statistics are sent.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Imported here: its first import reads the environment, and a finished folder needs no Ray.
    import ray

    _make_command_line_printable()
    if address and ":" in address:
        _check_reachable(address)
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    try:
        if address is None:
            ray.init(
                address="local",
                num_cpus=cores or len(os.sched_getaffinity(0)),
                include_dashboard=False,
                object_store_memory=max(MIN_OBJECT_STORE_BYTES, object_store_bytes),
                **quiet,
            )
        else:
            ray.init(address=address, **quiet)
            _await_nodes(nodes)
    except Exception as error:
        if address:
            raise CommandError(
                f"Ray at {address} can't be used: {error}. If it was started with tokens, set RAY_AUTH_MODE=token here "
                "too."
            ) from None
        raise CommandError(f"Ray can't be started on this machine: {error}") from None
    return count_cores()


def _make_command_line_printable() -> None:
    # Ray 2.60 sends the words of the command line to its table of jobs, and can't start if one of them is not UTF-8.
    try:
        "".join(sys.argv).encode()
    except UnicodeEncodeError:
        from ray._private import utils

        utils.get_entrypoint_name = lambda: " ".join(sys.argv).encode(errors="replace").decode()


def count_cores() -> int:
    """Return how many cores the Ray that this process is connected to has."""
    import ray

    return int(ray.cluster_resources().get("CPU", 1))


def _await_nodes(nodes: int) -> None:
    import ray

    end = time.monotonic() + NODES_SECONDS
    while (joined := sum(node["Alive"] for node in ray.nodes())) < nodes and time.monotonic() < end:
        time.sleep(0.5)
    if joined < nodes:
        print(f"{joined} of {nodes} nodes have joined Ray in {NODES_SECONDS:.0f} s: continuing with those.", flush=True)


def _check_reachable(address: str) -> None:
    """Raise if nothing listens at an address: Ray itself would retry for a quarter of an hour."""
    host, port = address.removeprefix("ray://").rsplit(":", 1)
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except (OSError, ValueError) as error:
        raise CommandError(f"nothing answers at --address {address}: {error}.") from None
