"""The one way in which babble starts Ray: on this machine, or by connecting to a running cluster.

    cores = start_ray(address=None, cores=2, object_store_bytes=80 << 20)

Imports neither Ray nor torch before it is asked to.
"""

import os
import resource
import secrets
import socket
import sys
import time
from typing import Any

from babble.cli import CommandError, explain_process_limit

# Ray refuses a smaller object store.
MIN_OBJECT_STORE_BYTES = 80 << 20
# The paths of sockets have at most 107 bytes, of which Ray's name for one takes 68.
MAX_TEMPORARY_BYTES = 39
# Ray has 170 threads before its first worker, and a process of it that can start no thread is aborted.
MIN_PROCESSES = 170
# Below this, a limit of processes and threads may be what stops Ray: all programs of a user count.
FEW_PROCESSES = 500
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
    if address is None:
        _raise_process_limit()
        _choose_temporary_folder()
        # Else Ray writes a token into the home folder, which may be read-only.
        if "RAY_AUTH_TOKEN_PATH" not in os.environ:
            os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
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
        raise CommandError(f"Ray can't be started on this machine: {error}{_explain_failure(error)}") from None
    return count_cores()


def _raise_process_limit() -> None:
    """Allow as many processes and threads as this user may have.

    Raises:
        CommandError: they are too few for Ray.
    """
    limit, hard = resource.getrlimit(resource.RLIMIT_NPROC)
    if limit != hard:
        resource.setrlimit(resource.RLIMIT_NPROC, (hard, hard))
    # Root has no limit.
    if os.geteuid() and hard != resource.RLIM_INFINITY and hard < MIN_PROCESSES:
        raise CommandError(f"Ray can't be started on this machine: {_describe_limit(hard)}")


def _describe_limit(limit: int) -> str:
    return f"it needs hundreds of processes and threads, and this user may have {limit}: raise ulimit -u."


def _explain_failure(error: Exception) -> str:
    """Return what to add to the message of an error of Ray's start."""
    limit = resource.getrlimit(resource.RLIMIT_NPROC)[0]
    if limit != resource.RLIM_INFINITY and limit < FEW_PROCESSES:
        return f". Perhaps {_describe_limit(limit)}"
    if isinstance(error, OSError):
        return explain_process_limit(error) or ". RAY_TMPDIR sets where Ray keeps temporary files; use a short path."
    return ""


def _choose_temporary_folder() -> None:
    """Have Ray use /tmp if it can't use TMPDIR: the path is too long for its sockets, or not writable."""
    folder = os.environ.get("TMPDIR", "")
    if folder and (len(os.fsencode(folder)) > MAX_TEMPORARY_BYTES or not os.access(folder, os.W_OK)):
        os.environ.setdefault("RAY_TMPDIR", "/tmp")


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
