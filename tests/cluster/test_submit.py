"""Sweeps as Ray jobs, on a real cluster of one node on loopback with token authentication."""

from __future__ import annotations

import http.server
import json
import secrets
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import pytest

from altgrad.results import list_runs
from altgrad.storage.folder import Folder
from tests.servers.polling import PATIENCE, SOON, wait_for
from tests.servers.ray_nodes import environment, free_port, ray_node
from tune.plan.options import SweepError, parse_options
from tune.submit import check_sweep

pytestmark = pytest.mark.ray
ROOT = Path(__file__).parents[2]
SMALL = ["--formats", "E4M3", "--no-baseline", "--model", "micro", "--max-steps", "20", "--wandb", "disabled"]
SMALL += ["--set", "batch_size=4", "eval_interval=20", "eval_batches=1", "diagnostic_interval=20"]


@dataclass(frozen=True)
class Cluster:
    address: str  # of the job server
    head: str
    home: Path
    token: str


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    home = tmp_path_factory.mktemp("cluster")
    token, port, head_port = secrets.token_hex(32), free_port(), free_port()
    address = f"http://127.0.0.1:{port}"
    options = ["--head", f"--port={head_port}", "--dashboard-host=127.0.0.1", f"--dashboard-port={port}"]
    variables = environment(home, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=token)
    with ray_node(variables, home / "head.log", *options, "--num-cpus=2") as head:
        wait_for(lambda: answers(address) or head.process.poll() is not None)
        assert head.process.poll() is None, head.log.read_text()
        yield Cluster(address, f"127.0.0.1:{head_port}", home, token)


def answers(address: str) -> bool:
    try:
        urllib.request.urlopen(f"{address}/api/version", timeout=2)
    except urllib.error.HTTPError as error:
        return error.code == 401
    except OSError:
        return False
    return True


def submit(
    cluster: Cluster, *arguments: str, within: float = PATIENCE, **variables: str
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "tune" / "submit.py"), "--address", cluster.address, *arguments]
    variables = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": cluster.token} | variables
    home = environment(cluster.home, **{name: value for name, value in variables.items() if value})
    return subprocess.run(command, env=home, capture_output=True, text=True, timeout=within)


def test_a_submitted_sweep_shows_its_log_and_leaves_its_results(cluster: Cluster, tmp_path: Path) -> None:
    done = submit(cluster, "--results", str(tmp_path / "shared"), "--name", "job", *SMALL)
    assert done.returncode == 0, done.stdout + done.stderr
    job = done.stdout.split()[1]
    for what in ("status", "logs", "stop"):
        assert f"ray job {what} --address {cluster.address} {job}" in done.stdout
    assert "e4m3-s42  completed" in done.stdout and f"job {job}: SUCCEEDED" in done.stdout
    runs, broken = list_runs(Folder.at(tmp_path / "shared" / "job"))
    assert not broken and [(run.name, run.status) for run in runs] == [("e4m3-s42", "completed")]
    assert cluster.token not in done.stdout + done.stderr

    again = submit(cluster, "--results", str(tmp_path / "shared"), "--resume", "job", "--wandb", "disabled")
    assert again.returncode == 0 and "nothing left to train" in again.stdout, again.stdout + again.stderr


def test_without_waiting_it_returns_and_the_job_s_failure_is_its_own(cluster: Cluster, tmp_path: Path) -> None:
    done = submit(cluster, "--no-wait", "--results", str(tmp_path), "--resume", "absent")
    assert done.returncode == 0 and "ray job status" in done.stdout
    waited = submit(cluster, "--results", str(tmp_path), "--resume", "absent")
    assert waited.returncode == 2 and "no sweep in" in waited.stdout and "FAILED" in waited.stdout


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"RAY_AUTH_MODE": "", "RAY_AUTH_TOKEN": ""}, "wants a token (401)"),
        ({"RAY_AUTH_TOKEN": "f" * 64}, "refuses this token (403)"),
    ],
)
def test_a_missing_or_wrong_token_is_explained_in_one_line(
    cluster: Cluster, tmp_path: Path, variables: dict[str, str], words: str
) -> None:
    done = submit(cluster, "--results", str(tmp_path), *SMALL, within=SOON, **variables)
    assert done.returncode == 2 and words in done.stderr and "RAY_AUTH_TOKEN" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


class Other(http.server.BaseHTTPRequestHandler):
    """A cluster of another version."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps({"version": "4", "ray_version": "2.10.0"}).encode())

    def log_message(self, *arguments: object) -> None:
        pass


def test_a_cluster_of_another_version_is_refused_with_both_versions(tmp_path: Path) -> None:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Other) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        other = Cluster(f"http://127.0.0.1:{server.server_port}", "", tmp_path, "0" * 64)
        done = submit(other, "--results", str(tmp_path), *SMALL)
        server.shutdown()
    assert done.returncode == 2 and "runs Ray 2.10.0, this is 2.6" in done.stderr


def test_an_address_where_nothing_answers_is_one_line_soon(tmp_path: Path) -> None:
    nobody = Cluster(f"http://127.0.0.1:{free_port()}", "", tmp_path, "0" * 64)
    done = submit(nobody, "--results", str(tmp_path), *SMALL, within=SOON)
    assert done.returncode == 2 and "no answer" in done.stderr and len(done.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--results", "results"], "an absolute path that all nodes share"),
        (["--results", "/shared", "--configs", "/etc"], "which is what the job sees"),
        (["--results", "/shared", "--configs", "configs/absent.yaml"], "which is what the job sees"),
    ],
)
def test_what_a_job_cannot_see_is_refused_before_it_is_sent(arguments: list[str], words: str) -> None:
    with pytest.raises(SweepError, match=words):
        check_sweep(parse_options(arguments))


@pytest.mark.parametrize(("address", "words"), [("127.0.0.1:1", "no answer"), ("ray://nowhere.invalid:1", "no answer")])
def test_a_sweep_that_cannot_reach_its_cluster_says_so_soon(address: str, words: str, tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "tune" / "sweep.py"), "--address", address, *SMALL]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment(tmp_path), capture_output=True, text=True, timeout=SOON
    )
    assert done.returncode == 2 and words in done.stderr and len(done.stderr.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_a_sweep_with_a_wrong_token_names_the_token_soon(cluster: Cluster, tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "tune" / "sweep.py"), "--address", cluster.head, *SMALL]
    variables = environment(cluster.home, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN="f" * 64)
    done = subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, text=True, timeout=SOON)
    assert done.returncode == 2 and "RAY_AUTH_TOKEN" in done.stderr.strip().splitlines()[-1]


def sweep(cluster: Cluster, folder: Path, *options: str, **more: str) -> subprocess.CompletedProcess[str]:
    """A sweep on the cluster's head, without a job, that is refused."""
    command = [sys.executable, str(ROOT / "tune" / "sweep.py"), "--address", cluster.head, *SMALL, *options]
    variables = environment(cluster.home, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=cluster.token, **more)
    return subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, timeout=SOON)


def test_more_gpus_than_the_cluster_has_are_refused_with_their_number(cluster: Cluster, tmp_path: Path) -> None:
    done = sweep(cluster, tmp_path, "--gpus-per-trial", "2")
    assert done.returncode == 2 and "--gpus-per-trial 2: the cluster has no GPUs" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1 and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("versions", "words"),
    [(("2.10.0", None), "Ray: 2.10.0"), ((None, "3.12.1"), "Python: 3.12.1")],
    ids=["Ray", "Python"],
)
def test_a_client_of_another_version_than_the_cluster_is_told_both(
    cluster: Cluster, tmp_path: Path, versions: tuple[str | None, str | None], words: str
) -> None:
    """The client claims to be another one; the comparison is Ray's own, over a real connection."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(
        "import ray._private.utils as utils\n"
        "real = utils.compute_version_info()\n"
        f"utils.compute_version_info = lambda: tuple(b or a for a, b in zip(real, {versions!r}))\n"
    )
    done = sweep(cluster, tmp_path, PYTHONPATH=str(tmp_path / "site"))
    assert done.returncode == 2 and len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert words in done.stderr and f"Ray: {metadata.version('ray')}" in done.stderr
