"""Real Ray nodes on loopback, each the processes of one `ray start --block`, that can be killed like a machine."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.servers.polling import wait_for

_COMMON = ("--block", "--node-ip-address=127.0.0.1", "--num-gpus=0", "--object-store-memory=80000000")


@dataclass(frozen=True)
class Node:
    """A running node; `log` is its output."""

    process: subprocess.Popen[bytes]
    log: Path

    def family(self) -> list[psutil.Process]:
        if self.process.poll() is not None:
            return []
        top = psutil.Process(self.process.pid)
        return [*top.children(recursive=True), top]

    def kill(self) -> None:
        """kill -9 of everything at once, as when a machine loses power."""
        for process in self.family():
            _kill(process)
        self.process.wait()


def _kill(process: psutil.Process) -> None:
    with suppress(psutil.NoSuchProcess):
        process.kill()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def environment(home: Path, **more: str) -> dict[str, str]:
    """This process's environment without anything of Ray's or a cloud's, and with a home of its own."""
    keep = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "AWS_", "WANDB_"))}
    path = f"{Path(sys.executable).parent}{os.pathsep}{keep['PATH']}"
    return keep | {"HOME": str(home), "PATH": path} | more


@contextmanager
def ray_node(variables: dict[str, str], log: Path, *options: str) -> Iterator[Node]:
    """A node for the length of the context, up when it begins; `options` of `ray start`."""
    scratch = tempfile.mkdtemp(prefix="altgrad-node-", dir="/tmp")  # short: sockets have a limit of 107 characters
    command = [str(Path(sys.executable).parent / "ray"), "start", *_COMMON, *options]
    command.append(f"--dashboard-agent-listen-port={free_port()}")  # else one fixed port, of one cluster per machine
    if "--head" in options:
        command += [f"--temp-dir={scratch}", "--disable-usage-stats"]
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, env=variables, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
    node = Node(process, log)
    try:
        wait_for(lambda: "Ray runtime started" in log.read_text() or process.poll() is not None)
        assert process.poll() is None, log.read_text()
        yield node
    finally:
        family = node.family()
        process.send_signal(signal.SIGTERM)
        _, left = psutil.wait_procs(family, timeout=20)
        for one in left:
            _kill(one)
        process.wait()
        shutil.rmtree(scratch, ignore_errors=True)
