"""Processes of their own that need not import torch: they are forked from a server that has.

The server has imported what commands, runs and ranks import, and has run nothing: neither threads nor process-wide
settings of torch are there to be inherited.  A process that imports all of it by itself takes five seconds of a core.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import multiprocessing.forkserver
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch.multiprocessing

ROOT = Path(__file__).parents[2]
_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(
    [
        "altgrad.__main__",
        "altgrad.experiment.runner",
        "pytest",
        "torch._dynamo",
        "torch.distributed.fsdp",
        "torch.distributed.tensor.parallel",
        __name__,
    ]
)


def process(work: Callable[..., None], *arguments: Any) -> multiprocessing.context.ForkServerProcess:
    """A process that is to call this function of a module: not started yet."""
    _serve()
    return _SERVER.Process(target=work, args=arguments)


def spawn_ranks(work: Callable[..., None], size: int, *arguments: Any) -> None:
    """So many processes that call `work(rank, *arguments)`, as `torch.multiprocessing.spawn` starts them."""
    _serve()
    said = (dict(os.environ), work, arguments)
    torch.multiprocessing.start_processes(_rank, said, nprocs=size, start_method="forkserver")


def _serve() -> None:
    """Start the server, if there is none, where it finds what it is to import."""
    with contextlib.chdir(ROOT):
        multiprocessing.forkserver.ensure_running()


def _rank(rank: int, variables: Mapping[str, str], work: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    become(variables)
    work(rank, *arguments)


def become(variables: Mapping[str, str]) -> None:
    """In the new process: its environment, which is otherwise that of the server's start."""
    os.environ.clear()
    os.environ.update(variables)
    os.fsync = lambda _: None  # as in the process of the tests
    tempfile.tempdir = None  # what an import has asked for goes on being told
