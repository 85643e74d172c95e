"""Run a sweep on a Ray cluster from here: pack the working tree, submit it as a job, follow its log.

    python tune/submit.py [--address http://HEAD:8265] [--no-wait] --results /shared/results [options of sweep.py]

The job is the plain `python tune/sweep.py ...`, so `ray job submit --working-dir . -- python tune/sweep.py ...` does
the same.  It runs in a copy of the tree that is gone afterwards: results go to shared storage.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import logging
import os
import shlex
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

if not __package__:  # run as a script: this folder is on the path, the repository's root is not
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from altgrad.command_line import OneLineParser, word
from altgrad.hints import error_text
from altgrad.storage import check_location
from tune.cluster import NOT_SENT, ROOT
from tune.options import SweepError, SweepOptions, parse_options

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

_ANSWER_SECONDS = 10  # for the cluster to answer at all
_EXIT_CODES = {"SUCCEEDED": 0, "STOPPED": 130}  # FAILED: 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Submit the sweep that the command line describes.

    Exit code: 0 submitted or succeeded, 1 the sweep failed, 2 it was not submitted, 130 stopped.
    """
    parser = OneLineParser(
        prog="submit.py",
        description="Run a sweep on a Ray cluster.",
        epilog="All other options are those of tune/sweep.py.",
    )
    parser.add_argument(
        "--address",
        type=word,
        default=os.environ.get("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:8265"),
        help="the cluster's job server (default: $RAY_API_SERVER_ADDRESS, or http://127.0.0.1:8265)",
    )
    parser.add_argument("--no-wait", action="store_true", help="submit and return")
    own, sweep_arguments = parser.parse_known_args(arguments)
    try:
        check_sweep(parse_options(sweep_arguments))
        check_cluster(own.address)
        return _submit(own.address, sweep_arguments, wait=not own.no_wait)
    except SweepError as error:
        print(f"submit.py: error: {error_text(error)}", file=sys.stderr)
        return 2


def check_sweep(options: SweepOptions) -> None:
    """Refuse what cannot work in a job, which sees a copy of this tree and nothing else.  Raises SweepError."""
    try:
        check_location(options.results)
    except ValueError as error:
        raise SweepError(f"--results: {error}") from error
    if "://" not in options.results and not os.path.isabs(options.results):
        raise SweepError(
            f"--results {options.results}: the job's folder is gone after the job; give an absolute path that all "
            "nodes share, or s3://bucket/prefix"
        )
    for path in options.configs or ():
        inside = (ROOT / path).resolve()
        if not inside.is_relative_to(ROOT) or not inside.exists():
            raise SweepError(f"--configs {path}: not in {ROOT}, which is what the job sees; give a path relative to it")


def check_cluster(address: str) -> None:
    """Whether a cluster answers there, accepts our token and runs our Ray.  Raises SweepError within 10 s."""
    if not address.startswith(("http://", "https://")):
        raise SweepError(f"--address {address}: expected the job server, such as http://HEAD:8265")
    from ray._private.authentication.http_token_authentication import get_auth_headers_if_auth_enabled

    _expect_token()
    request = urllib.request.Request(f"{address.rstrip('/')}/api/version", headers=get_auth_headers_if_auth_enabled({}))
    try:
        with urllib.request.urlopen(request, timeout=_ANSWER_SECONDS) as answer:
            theirs = str(json.load(answer)["ray_version"])
    except urllib.error.HTTPError as error:
        raise SweepError(f"--address {address}: {_explain(error)}") from error
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        raise SweepError(f"--address {address}: no answer ({reason}); is it the head's dashboard port?") from error
    except (ValueError, KeyError, TypeError) as error:
        raise SweepError(f"--address {address}: what answers there is no Ray cluster") from error
    ours = metadata.version("ray")
    if theirs.split(".")[:2] != ours.split(".")[:2]:
        raise SweepError(f"--address {address}: the cluster runs Ray {theirs}, this is {ours}; install ray=={theirs}")


def _expect_token() -> None:
    """Let Ray send its token where there is one: $RAY_AUTH_TOKEN, $RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token."""
    from ray._private.authentication.authentication_token_setup import maybe_enable_token_auth_if_token_available

    maybe_enable_token_auth_if_token_available(warn_if_disabled=False)


def _explain(error: urllib.error.HTTPError) -> str:
    if error.code == 401:
        return "the cluster wants a token (401); set RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH to that of its head node"
    if error.code == 403:
        return "the cluster refuses this token (403); RAY_AUTH_TOKEN must be that of its head node"
    return f"answered {error.code} {error.reason}; is it the head's dashboard port?"


def _submit(address: str, sweep_arguments: Sequence[str], *, wait: bool) -> int:
    from ray.job_submission import JobSubmissionClient

    logging.getLogger("ray").setLevel(logging.ERROR)  # it lists every file that is left out
    client = JobSubmissionClient(address)
    job = _accepted(client, shlex.join(["python", "tune/sweep.py", *sweep_arguments]), address)
    print(f"job {job}")
    for what in ("status", "logs", "stop"):
        print(f"  ray job {what} --address {address} {job}", flush=True)
    if not wait:
        return 0
    try:
        asyncio.run(_follow(client, job))
    except KeyboardInterrupt:
        print(f"\nthe job goes on; follow it with: ray job logs --follow --address {address} {job}")
        return 0
    details = client.get_job_info(job)
    print(f"job {job}: {details.status.value}" + (f": {details.message}" if details.message else ""))
    return _EXIT_CODES.get(details.status.value, details.driver_exit_code or 1)


def _accepted(client: JobSubmissionClient, command: str, address: str) -> str:
    """The id of the submitted job.  A head that has just started takes no jobs for some seconds."""
    environment = {"working_dir": str(ROOT), "excludes": list(NOT_SENT)}
    end = time.monotonic() + _ANSWER_SECONDS
    while True:
        try:
            return str(client.submit_job(entrypoint=command, runtime_env=environment))
        except (RuntimeError, ValueError, OSError) as error:
            reason = " ".join(str(error).split())
            if "No available agent" not in reason or time.monotonic() > end:
                raise SweepError(f"--address {address}: the job was not accepted: {reason[:300]}") from error
        time.sleep(1.0)


async def _follow(client: JobSubmissionClient, job: str) -> None:
    async for text in client.tail_job_logs(job):
        print(text, end="", flush=True)


if __name__ == "__main__":
    sys.exit(main())
