"""The cluster manifests, against Ray's own schema, the field names of KubeRay's custom resource, and bash."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from tune.plan.options import parse_options

CLUSTER = Path(__file__).parents[2] / "configs" / "cluster"
LAUNCHER = ("on_premise.yaml", "aws_h100.yaml")

# ray.io/v1, KubeRay 1.5: the fields of each object that a RayJob is made of
KUBERAY = {
    "RayJob": {"apiVersion", "kind", "metadata", "spec"},
    "RayJobSpec": {
        "activeDeadlineSeconds", "backoffLimit", "clusterSelector", "deletionStrategy", "entrypoint",
        "entrypointNumCpus", "entrypointNumGpus", "entrypointResources", "jobId", "managedBy", "metadata",
        "rayClusterSpec", "runtimeEnvYAML", "shutdownAfterJobFinishes", "submissionMode", "submitterConfig",
        "submitterPodTemplate", "suspend", "ttlSecondsAfterFinished",
    },
    "RayClusterSpec": {
        "authOptions", "autoscalerOptions", "enableInTreeAutoscaling", "gcsFaultToleranceOptions",
        "headGroupSpec", "headServiceAnnotations", "managedBy", "rayVersion", "suspend", "upgradeStrategy",
        "workerGroupSpecs",
    },
    "AuthOptions": {"mode", "secretName", "enableK8sTokenAuth"},
    "HeadGroupSpec": {
        "enableIngress", "headService", "labels", "rayStartParams", "resources", "serviceType", "template",
    },
    "WorkerGroupSpec": {
        "groupName", "idleTimeoutSeconds", "labels", "maxReplicas", "minReplicas", "numOfHosts", "rayStartParams",
        "replicas", "resources", "scaleStrategy", "suspend", "template",
    },
}  # fmt: skip


def load(name: str) -> dict[str, Any]:
    content = yaml.safe_load((CLUSTER / name).read_text())
    assert isinstance(content, dict)
    return content


@pytest.mark.parametrize("name", LAUNCHER)
def test_launcher_files_satisfy_ray_s_schema(name: str) -> None:
    schema = json.loads((Path(ray.__file__).parent / "autoscaler" / "ray-schema.json").read_text())
    jsonschema.validate(load(name), schema)
    validate_config(prepare_config(load(name)))


@pytest.mark.parametrize("name", LAUNCHER)
def test_launched_nodes_keep_token_authentication_and_start_in_the_environment(name: str) -> None:
    config = load(name)
    for key in ("head_start_ray_commands", "worker_start_ray_commands"):
        start = config[key][-1]
        assert "RAY_AUTH_MODE=token" in start and "altgrad/.venv/bin" in start and "--disable-usage-stats" in start
    assert "--dashboard-host=127.0.0.1" in config["head_start_ray_commands"][-1]


def test_aws_workers_are_h100_machines_and_the_head_trains_nothing() -> None:
    types = load("aws_h100.yaml")["available_node_types"]
    assert types["h100"]["node_config"]["InstanceType"].startswith("p5.")
    assert types["h100"]["resources"]["GPU"] == 8
    assert types["head"]["resources"] == {"CPU": 0}


def test_the_rayjob_uses_kuberay_s_field_names_only() -> None:
    job = load("kuberay_rayjob.yaml")
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    cluster = job["spec"]["rayClusterSpec"]
    parts = {"RayJob": [job], "RayJobSpec": [job["spec"]], "RayClusterSpec": [cluster]}
    parts |= {"AuthOptions": [cluster["authOptions"]], "HeadGroupSpec": [cluster["headGroupSpec"]]}
    parts |= {"WorkerGroupSpec": cluster["workerGroupSpecs"]}
    for kind, objects in parts.items():
        for fields in objects:
            assert not fields.keys() - KUBERAY[kind], kind
    assert cluster["authOptions"]["mode"] == "token"
    assert cluster["rayVersion"] == ray.__version__


def test_the_rayjob_s_pods_ask_for_gpus_and_mount_the_results() -> None:
    cluster = load("kuberay_rayjob.yaml")["spec"]["rayClusterSpec"]
    workers = [group["template"]["spec"] for group in cluster["workerGroupSpecs"]]
    for pod in [cluster["headGroupSpec"]["template"]["spec"], *workers]:
        names = {volume["name"] for volume in pod["volumes"]}
        assert {mount["name"] for container in pod["containers"] for mount in container["volumeMounts"]} == names
    for pod in workers:
        resources = pod["containers"][0]["resources"]
        assert resources["limits"]["nvidia.com/gpu"] == resources["requests"]["nvidia.com/gpu"] >= 1


def test_the_rayjob_s_command_is_one_that_the_sweep_accepts() -> None:
    entrypoint = load("kuberay_rayjob.yaml")["spec"]["entrypoint"]
    match = re.search(r"python tune/sweep.py (.*)\"", entrypoint)
    assert match is not None
    assert parse_options(match[1].split()).results.startswith("/shared")


def test_the_slurm_script_is_bash_and_fails_without_a_head() -> None:
    subprocess.run(["bash", "-n", CLUSTER / "slurm.sh"], check=True)
    text = (CLUSTER / "slurm.sh").read_text()
    assert text.startswith("#!/bin/bash\n") and "set -euo pipefail" in text


@pytest.mark.parametrize("name", [*LAUNCHER, "kuberay_rayjob.yaml", "slurm.sh"])
def test_each_file_says_at_the_top_which_three_lines_to_change(name: str) -> None:
    top, _, rest = (CLUSTER / name).read_text().partition("\n\n")
    if name.endswith(".yaml"):
        rest = "\n".join(line for line in (CLUSTER / name).read_text().splitlines() if not line.startswith("#"))
        top = "\n".join(line for line in (CLUSTER / name).read_text().splitlines() if line.startswith("#"))
    assert "Change these three lines" in top
    for mark in ("[1]", "[2]", "[3]"):
        assert mark in top and (mark in rest or name == "slurm.sh")
