"""Run a sweep on a Ray cluster from here: pack the code, submit it as a job, follow its log.

    python tune/submit.py [--address http://HEAD:8265] [--no-wait] --results /shared/results [options of sweep.py]

The job is `python tune/sweep.py ...`, so that `ray job submit --working-dir . -- python tune/sweep.py ...` does the
same.  It runs in a temporary copy of the tree; results must go to shared storage.  An installed package is sent in the
layout of a clone (see `sent_code`).
"""

from __future__ import annotations

import asyncio
import http.client
import json
import logging
import os
import re
import shlex
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

if not __package__:  # run as a script: this folder is on the path, the repository's root is not
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from altgrad.commands.extras import exit_without

    exit_without("sweep")

from altgrad.commands.option_fields import without_secrets
from altgrad.commands.option_parser import OneLineParser, examples, word
from altgrad.commands.typed_command import program_command
from altgrad.commands.web.direct_http import open_directly, why_not
from altgrad.config.shipped_configs import ROOT
from altgrad.storage.folder import check_location
from altgrad.text.error_hints import error_text
from altgrad.text.terminal_output import harmless, one_line, unstoppable_output
from tune.cluster import ray_private
from tune.cluster.sent_code import sent_code
from tune.plan.options import NOTIFY, SweepError, SweepOptions, parse_options

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

_ANSWER_SECONDS = 10  # limit for an answer of the cluster
_ACCEPT_SECONDS = 120  # limit for a cluster that answers to accept a job: a head that has just started refuses at first
_LONGEST_ANSWER = 65536  # bytes
_EXIT_CODES = {"SUCCEEDED": 0, "STOPPED": 130}  # FAILED: 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Submit the sweep that the command line describes.

    Exit code: 0 submitted or succeeded, 1 the sweep failed, 2 it was not submitted, 130 stopped.
    """
    parser = OneLineParser(
        prog=program_command(),
        description="Send this tree to a Ray cluster as a job that runs a sweep there, and follow it.",
        epilog="All other options are those of `altgrad sweep`.\n\n"
        + examples("submit --results s3://bucket/results --formats E4M3 E5M2"),
    )
    parser.add_argument(
        "--address",
        type=word,
        default=os.environ.get("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:8265"),
        help="the cluster's job server (default: $RAY_API_SERVER_ADDRESS, or http://127.0.0.1:8265)",
    )
    parser.add_argument("--no-wait", action="store_true", help="submit and return")
    own, sweep_arguments = parser.parse_known_args(arguments)
    with unstoppable_output():
        try:
            options = parse_options(sweep_arguments)
            check_sweep(options)
            check_cluster(own.address)
            words = without_secrets(sweep_arguments, SweepOptions)
            return _submit(own.address, words, options.notify, wait=not own.no_wait, task=options.task_name)
        except SweepError as error:
            print(f"{program_command()}: error: {harmless(error_text(error))}", file=sys.stderr)
            return 2


def check_sweep(options: SweepOptions) -> None:
    """Raise SweepError for paths that do not exist in a job, which has only a copy of this tree."""
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
    """Raise SweepError, within 10 s, if no cluster answers, it refuses our token, or its version of Ray differs."""
    if not address.startswith(("http://", "https://")):
        raise SweepError(f"--address {address}: expected the job server, such as http://HEAD:8265")
    ray_private.use_token()
    request = urllib.request.Request(f"{address.rstrip('/')}/api/version", headers=ray_private.token_headers())
    end = time.monotonic() + _ANSWER_SECONDS
    while True:
        try:
            with open_directly(request, _ANSWER_SECONDS) as answer:
                theirs = str(json.loads(answer.read(_LONGEST_ANSWER))["ray_version"])
            break
        except urllib.error.HTTPError as error:
            if error.code < 500 or time.monotonic() > end:
                raise SweepError(f"--address {address}: {_explain(error)}") from error
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", error)
            if not isinstance(reason, ConnectionError) or time.monotonic() > end:
                words = f"no answer ({one_line(reason)}); is it the head's dashboard port?"
                raise SweepError(f"--address {address}: {words}") from error
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise SweepError(f"--address {address}: the server that answers there is not a Ray cluster") from error
        time.sleep(0.5)
    ours = metadata.version("ray")
    if theirs.split(".")[:2] != ours.split(".")[:2]:
        raise SweepError(f"--address {address}: the cluster runs Ray {theirs}, this is {ours}; install ray=={theirs}")


def _explain(error: urllib.error.HTTPError) -> str:
    if error.code == 401:
        return "the cluster wants a token (401); set RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH to that of its head node"
    if error.code == 403:
        return "the cluster refuses this token (403); RAY_AUTH_TOKEN must be that of its head node"
    return f"{why_not(error)}; is it the head's dashboard port?"


def _submit(
    address: str, sweep_arguments: Sequence[str], notify: str | None, *, wait: bool, task: str | None = None
) -> int:
    logging.getLogger("ray").setLevel(logging.ERROR)  # it lists every file that is left out
    variables = {} if notify is None else {"env_vars": {NOTIFY: notify}}
    command = shlex.join(["python", "tune/sweep.py", *sweep_arguments])
    with sent_code(() if task is None else (task,)) as sent:
        client, job = _accepted(address, command, {**sent, **variables})
    print(f"job {job}")
    for what in ("status", "logs", "stop"):
        print(f"  ray job {what} --address {address} {job}", flush=True)
    if not wait:
        return 0
    follow = f"the job goes on; follow it with: ray job logs --follow --address {address} {job}"
    try:
        asyncio.run(_follow(client, job))
        details = client.get_job_info(job)
    except KeyboardInterrupt:
        print(f"\n{follow}")
        return 0
    except Exception as error:  # of requests, of aiohttp, or Ray's plain RuntimeError
        print(f"{program_command()}: lost sight of the job: {one_line(error)[:300]}; {follow}", file=sys.stderr)
        return 1
    print(harmless(f"job {job}: {details.status.value}" + (f": {details.message}" if details.message else "")))
    return _EXIT_CODES.get(details.status.value, details.driver_exit_code or 1)


def _accepted(address: str, command: str, environment: Mapping[str, Any]) -> tuple[JobSubmissionClient, str]:
    """(the job server's client, the id of the submitted job).

    A head that has just started answers 5xx or not at all; the submission is then repeated.  Raises SweepError for a
    refusal that is final (4xx, a redirect), and when the time is up.
    """
    end = time.monotonic() + _ACCEPT_SECONDS
    while True:
        try:
            client = _direct_client(address)
            return client, str(client.submit_job(entrypoint=command, runtime_env=dict(environment)))
        except Exception as error:  # of requests, or Ray's plain RuntimeError and ConnectionError
            reason = one_line(error)
            if _is_final(reason) or time.monotonic() > end:
                raise SweepError(
                    f"--address {address}: the job was not accepted: {reason[:300]}{_advice(reason)}"
                ) from error
        time.sleep(1.0)


def _advice(reason: str) -> str:
    """What helps where no node accepts a job; "" for any other refusal."""
    if "No available agent" not in reason:
        return ""
    return (
        " A head node has no agent if another cluster on its machine has taken the agent's port; restart one with "
        "ray start --dashboard-agent-listen-port PORT"
    )


def _direct_client(address: str) -> JobSubmissionClient:
    """A client that sends its token only to this address, because it follows no redirect."""
    from ray.job_submission import JobSubmissionClient

    class Direct(JobSubmissionClient):
        def _do_request(self, *arguments: Any, **options: Any) -> Any:
            return super()._do_request(*arguments, allow_redirects=False, **options)

    return Direct(address)


def _is_final(reason: str) -> bool:
    """Whether Ray's text of a refusal names a status of 3xx or 4xx, or the authentication: repeating is useless."""
    return re.search(r"status code [34]\d\d\b", reason) is not None or "uthentication" in reason


async def _follow(client: JobSubmissionClient, job: str) -> None:
    async for text in client.tail_job_logs(job):
        print(harmless(text), end="", flush=True)


if __name__ == "__main__":
    sys.exit(main())
