"""Ray during a sweep: a private Ray on this machine, or a connection to a running cluster."""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import signal
import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from altgrad.config.shipped_configs import ROOT
from altgrad.text.terminal_output import one_line
from tune.cluster import private_folders as scratch
from tune.cluster import ray_private
from tune.cluster.accelerators import smallest_gpu
from tune.cluster.ray_watch import RayFailed, watched_ray
from tune.cluster.sent_code import sent_code
from tune.plan.options import SweepError
from tune.plan.resources.machine import Machine

_OBJECT_STORE_BYTES = 100 * 1024**2  # trials exchange records only
# Read by Ray's processes.  Before a reused worker starts the next trial, it waits for the thread of the previous one to
# end, for example its last upload; if Ray's default of 2 s is exceeded, the next trial fails.
_WORKER_ENVIRONMENT = {"TUNE_FUNCTION_THREAD_TIMEOUT_S": "60", "RAY_CHDIR_TO_TRIAL_DIR": "0"}
# Seconds between checks that a trial's workers are alive; Ray's default is 2 s.
_WORKER_ENVIRONMENT |= {"RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2"}
# Read by Tune in this process: switches off its loggers (we write the results), its console output, and its signal
# handler, after which an interrupted sweep looks finished.
_DRIVER_ENVIRONMENT = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_WARN_INSUFFICENT_RESOURCE_THRESHOLD_S": "0",
}
# Ray's switch against clusters, named after the systems on which it is the default: Ray's processes then listen on
# 127.0.0.1 only, instead of on every interface.
_LOOPBACK_ONLY = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
_GIVE_UP_SOON = {"RAY_NUM_REDIS_GET_RETRIES": "5"}  # Ray tries 20 times to connect, a second each
_ANSWER_SECONDS = 5.0


@contextmanager
def local_ray(
    machine: Machine, on_death: Callable[[str], None] = print, tell: Callable[[str], None] = print
) -> Iterator[Path]:
    """Context with a private Ray that has the machine's cores and GPUs, also if a cluster is running here.

    Yields a private folder for temporary files, which contains Ray's own.

    If one of Ray's processes dies, `on_death` is called with its name and this process ends (see `watched_ray`).
    `tell` is called with one line about an unusable temporary folder.  Raises RayFailed if Ray does not start.
    """
    os.environ.update(_DRIVER_ENVIRONMENT | _LOOPBACK_ONLY)
    import ray  # reads its environment when imported

    ray_private.send_no_keys_of_the_cloud()
    _use_own_token()
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    os.environ["PYTHONPATH"] = os.pathsep.join(paths)  # workers do not see this process's sys.path
    place, note = scratch.temporary_root()
    if note is not None:
        tell(note)
    with scratch.private_folder(place) as folder:
        try:
            try:
                with _own_sigterm():
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
                why = one_line(error).rstrip(".")
                raise RayFailed(f"Ray did not start here: {type(error).__name__}: {why}") from error

            def gone(which: str) -> None:
                on_death(which)
                shutil.rmtree(folder, ignore_errors=True)

            ray_private.keep_quiet()  # whoever watches here tells a death in one line
            with watched_ray(ray_private.own_processes(), gone):
                yield folder
        finally:
            ray.shutdown()


@contextmanager
def _own_sigterm() -> Iterator[None]:
    """Context after which SIGTERM is handled as before: `ray.init` puts a C++ handler there, which ends the process."""
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if handler is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)


@contextmanager
def connected_ray(address: str, tasks: Iterable[str] = ()) -> Iterator[Machine]:
    """Context with a connection to a running cluster; yields its CPUs and GPUs.  `tasks`: as in `sent_code`.

    Inside a Ray job the cluster already has this code; otherwise it is sent.  Raises SweepError if the cluster cannot
    be reached.
    """
    _check_reachable(address)
    os.environ.update(_DRIVER_ENVIRONMENT | _GIVE_UP_SOON)
    import ray  # reads its environment when imported

    ray_private.send_no_keys_of_the_cloud()
    with ExitStack() as stack:
        sent = {} if "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ else stack.enter_context(sent_code(tasks))
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


def _why_not(error: Exception) -> str:
    """Ray's reason for a refused connection, with advice, in one line."""
    lines = str(error).strip().splitlines() or ["no answer"]
    if "version mismatch" in lines[0].lower():  # the versions of both sides follow
        return f"{' '.join(' '.join(lines).split())}; use the cluster's versions here, or `altgrad submit`"
    return f"{lines[0].rstrip('.')}; RAY_AUTH_TOKEN must be the token of its head node"


def _check_reachable(address: str) -> None:
    """Raise SweepError if nothing listens at HOST:PORT or ray://HOST:PORT; Ray itself would try for minutes."""
    parts = urlsplit(address if "://" in address else f"//{address}")
    try:
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise SweepError(f"--address {address}: expected HOST:PORT, ray://HOST:PORT or auto") from error
    if host is None or port is None:
        return  # a name such as auto, about which Ray decides at once
    try:
        socket.create_connection((host, port), timeout=_ANSWER_SECONDS).close()
    except OSError as error:
        raise SweepError(f"--address {address}: no answer ({error}); is it the head's port?") from error


def _use_own_token() -> None:
    """Let Ray's processes authenticate with a token for this sweep alone, instead of a file in the home folder."""
    if not os.environ.keys() & {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE"}:
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
