"""Ray for the length of a sweep: a private one on this machine, or a connection to a cluster that is already there."""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from altgrad.config.shipped_configs import ROOT
from altgrad.text.terminal_output import one_line
from tune.cluster import private_folders as scratch
from tune.cluster.accelerators import smallest_gpu
from tune.cluster.ray_watch import RayFailed, watched_ray
from tune.cluster.sent_code import sent_code
from tune.plan.machine import Machine
from tune.plan.options import SweepError

_OBJECT_STORE_BYTES = 100 * 1024**2  # trials exchange records only
# Read by Ray's processes.  A reused worker waits for the previous trial's thread to end, e.g. its last upload, before
# it takes the next trial; with Ray's 2 s the next, innocent trial fails.
_WORKER_ENVIRONMENT = {"TUNE_FUNCTION_THREAD_TIMEOUT_S": "60", "RAY_CHDIR_TO_TRIAL_DIR": "0"}
# How soon the end or the death of a trial's workers is noticed; Ray looks every 2 s.
_WORKER_ENVIRONMENT |= {"RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2"}
# Read by Tune in this process: no loggers of its own (the results folder is ours), no console output, no handler
# that makes an interrupted sweep look finished.
_DRIVER_ENVIRONMENT = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_WARN_INSUFFICENT_RESOURCE_THRESHOLD_S": "0",
}
# Ray's switch for "no cluster", whose name comes from where it is the default: its processes then listen on 127.0.0.1
# instead of on every interface.
_LOOPBACK_ONLY = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
_GIVE_UP_SOON = {"RAY_NUM_REDIS_GET_RETRIES": "5"}  # Ray tries 20 times to connect, a second each
_ANSWER_SECONDS = 5.0


@contextmanager
def local_ray(
    machine: Machine, on_death: Callable[[str], None] = print, tell: Callable[[str], None] = print
) -> Iterator[Path]:
    """A Ray of our own with the machine's cores and GPUs, whatever cluster may be running here; gone afterwards.

    Yields a private folder for temporary files, in which Ray's own are.

    Where one of its processes dies, `on_death` is told which, and this process ends (see `watched_ray`).  `tell` gets
    a line about a temporary folder that cannot be used.  Raises RayFailed where Ray does not start.
    """
    os.environ.update(_DRIVER_ENVIRONMENT | _LOOPBACK_ONLY)
    import ray  # reads its environment when imported

    _keep_secrets()
    _use_own_token()
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    os.environ["PYTHONPATH"] = os.pathsep.join(paths)  # workers do not see this process's sys.path
    place, note = scratch.temporary_root()
    if note is not None:
        tell(note)
    with scratch.private_folder(place) as folder:
        try:
            try:
                ray.init(
                    address="local",
                    num_cpus=machine.cpus,
                    num_gpus=machine.gpus,
                    object_store_memory=_OBJECT_STORE_BYTES,
                    include_dashboard=False,
                    log_to_driver=False,
                    logging_level=logging.CRITICAL,  # `watched_ray` says it in one line
                    runtime_env={"env_vars": _WORKER_ENVIRONMENT},
                    _temp_dir=str(folder / "r"),
                )
            except Exception as error:  # of many classes, down to plain Exception
                raise RayFailed(f"Ray did not start here: {type(error).__name__}: {one_line(error)}") from error

            def gone(which: str) -> None:
                on_death(which)
                shutil.rmtree(folder, ignore_errors=True)

            worker: Any = ray._private.worker
            # Ray tells a death in twenty lines of its log; whoever watches here tells it in one.
            worker.print_to_stdstream = lambda *arguments, **options: None
            with watched_ray(worker._global_node.all_processes, gone):
                yield folder
        finally:
            ray.shutdown()


@contextmanager
def connected_ray(address: str) -> Iterator[Machine]:
    """A running cluster; yields what it has.  Raises SweepError where it cannot be reached.

    Inside a Ray job the cluster already has this code; from elsewhere it is sent along.
    """
    _check_reachable(address)
    os.environ.update(_DRIVER_ENVIRONMENT | _GIVE_UP_SOON)
    import ray  # reads its environment when imported

    _keep_secrets()
    with ExitStack() as stack:
        sent = {} if "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ else stack.enter_context(sent_code())
        environment = {"env_vars": _WORKER_ENVIRONMENT, **sent}
        try:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, runtime_env=environment)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise SweepError(f"--address {address}: cannot connect: {_why_not(error)}") from error
    try:
        has = ray.cluster_resources()
        gpus = int(has.get("GPU", 0))
        note = f"the cluster has {gpus or 'no'} GPU{'s' * (gpus != 1)}"
        yield Machine(int(has.get("CPU", 0)), gpus, note, smallest_gpu(node["Resources"] for node in ray.nodes()))
    finally:
        ray.shutdown()


def _keep_secrets() -> None:
    """Tune copies the cloud's keys into what it tells Ray, which writes that to its logs.  Ours are inherited by the
    processes of a Ray of our own; those of a cluster have the keys of their nodes."""
    from ray.tune.execution import class_cache

    class_cache.ENV_VARS_TO_PROPAGATE -= {name for name in class_cache.ENV_VARS_TO_PROPAGATE if name.startswith("AWS_")}


def _why_not(error: Exception) -> str:
    """Ray's reason for a refused connection and what to do, in one line."""
    lines = str(error).strip().splitlines() or ["no answer"]
    if "version mismatch" in lines[0].lower():  # the versions of both sides follow
        return f"{' '.join(' '.join(lines).split())}; use the cluster's versions here, or `altgrad submit`"
    return f"{lines[0].rstrip('.')}; RAY_AUTH_TOKEN must be the token of its head node"


def _check_reachable(address: str) -> None:
    """Refuse a HOST:PORT or ray://HOST:PORT where nothing listens; Ray itself would look for minutes."""
    parts = urlsplit(address if "://" in address else f"//{address}")
    try:
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise SweepError(f"--address {address}: expected HOST:PORT, ray://HOST:PORT or auto") from error
    if host is None or port is None:
        return  # a name such as auto: Ray knows at once
    try:
        socket.create_connection((host, port), timeout=_ANSWER_SECONDS).close()
    except OSError as error:
        raise SweepError(f"--address {address}: no answer ({error}); is it the head's port?") from error


def _use_own_token() -> None:
    """Ray's processes authenticate with a token: one for this sweep alone, instead of a file in the home folder."""
    if not os.environ.keys() & {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE"}:
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
