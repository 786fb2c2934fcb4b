"""The files of deploy/: Kubernetes' own schemas for what is Kubernetes', KubeRay's documented keys for the rest."""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import ray
import yaml
from typer.main import get_command

from tmkd.cli.main import app

DEPLOY = Path(__file__).resolve().parents[1] / "deploy" / "ray"
KUBERNETES = "1.31"

START = {"type": "object", "additionalProperties": {"type": "string"}}  # options of `ray start`, as text
GROUP = {"rayStartParams": START, "template": {"type": "object"}}
WORKERS = {**GROUP, **{name: {"type": "integer", "minimum": 0} for name in ("replicas", "minReplicas", "maxReplicas")}}


def strict(properties: dict[str, Any], *required: str) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(required), "additionalProperties": False}


# the keys of ray.io/v1 that the manifest uses, from KubeRay's API reference
RAY_JOB = strict(
    {
        "apiVersion": {"const": "ray.io/v1"},
        "kind": {"const": "RayJob"},
        "metadata": strict({"name": {"type": "string", "pattern": "^[a-z0-9-]{1,40}$"}}, "name"),
        "spec": strict(
            {
                "entrypoint": {"type": "string"},
                "shutdownAfterJobFinishes": {"type": "boolean"},
                "ttlSecondsAfterFinished": {"type": "integer"},
                "backoffLimit": {"type": "integer"},
                "rayClusterSpec": strict(
                    {
                        "rayVersion": {"type": "string"},
                        "authOptions": strict({"mode": {"enum": ["token", "disabled"]}}, "mode"),
                        "headGroupSpec": strict(GROUP, "rayStartParams", "template"),
                        "workerGroupSpecs": {
                            "type": "array",
                            "items": strict({**WORKERS, "groupName": {"type": "string"}}, "groupName", "template"),
                        },
                    },
                    "headGroupSpec",
                ),
            },
            "entrypoint",
            "rayClusterSpec",
        ),
    },
    "apiVersion",
    "kind",
    "metadata",
    "spec",
)


@pytest.fixture(scope="module")
def manifests() -> dict[str, Any]:
    return {one["kind"]: one for one in yaml.safe_load_all((DEPLOY / "rayjob.yaml").read_text())}


def test_the_manifest_has_keys_of_kuberay_and_pods_of_kubernetes(manifests: dict[str, Any]) -> None:
    job = manifests["RayJob"]
    jsonschema.validate(job, RAY_JOB)
    cluster = job["spec"]["rayClusterSpec"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "one"}, **group["template"]}
        kubernetes_validate.validate(pod, KUBERNETES, strict=True)
    kubernetes_validate.validate(manifests["PersistentVolumeClaim"], KUBERNETES, strict=True)
    claims = [one["persistentVolumeClaim"]["claimName"] for one in volumes(job) if "persistentVolumeClaim" in one]
    assert claims == [manifests["PersistentVolumeClaim"]["metadata"]["name"]]


def volumes(job: dict[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["volumes"]
    return found


def test_a_wrong_key_would_be_found(manifests: dict[str, Any]) -> None:
    job = manifests["RayJob"]
    with pytest.raises(jsonschema.ValidationError, match="entrypoints"):
        jsonschema.validate({**job, "spec": {**job["spec"], "entrypoints": "tmkd"}}, RAY_JOB)
    head = job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "one"}, "spec": {**head, "container": []}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(pod, KUBERNETES, strict=True)


def test_the_commands_of_both_exist_with_these_options(manifests: dict[str, Any]) -> None:
    script = (DEPLOY / "label.sbatch").read_text()
    line = next(line for line in script.splitlines() if line.startswith("tmkd "))
    for command in (manifests["RayJob"]["spec"]["entrypoint"], line):
        words = shlex.split(command)
        known = {option for one in get_command(app).commands[words[1]].params for option in one.opts}  # type: ignore[attr-defined]
        assert {word for word in words if word.startswith("--")} <= known


def test_the_manifest_names_the_version_of_ray_that_is_pinned(manifests: dict[str, Any]) -> None:
    assert manifests["RayJob"]["spec"]["rayClusterSpec"]["rayVersion"] == ray.__version__


def test_the_slurm_script_is_bash_and_its_options_are_known() -> None:
    path = DEPLOY / "label.sbatch"
    subprocess.run(["bash", "-n", str(path)], check=True)
    options = [line.split()[1].split("=")[0] for line in path.read_text().splitlines() if line.startswith("#SBATCH")]
    known = {"--job-name", "--nodes", "--ntasks-per-node", "--exclusive", "--time", "--output"}  # man sbatch
    assert set(options) == known
    done = subprocess.run(["bash", str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "usage: sbatch deploy/ray/label.sbatch RECIPE" in done.stderr
