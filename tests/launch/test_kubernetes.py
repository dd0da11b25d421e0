"""launch/kubernetes/job.yaml: fits Kubernetes' schemas, and its numbers and names fit each other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from llmkit.stopping import STOPPED

FILE = Path(__file__).parents[2] / "launch" / "kubernetes" / "job.yaml"
OBJECTS = {each["kind"]: each for each in yaml.safe_load_all(FILE.read_text())}
JOB = OBJECTS["Job"]["spec"]
POD = JOB["template"]["spec"]
(CONTAINER,) = POD["containers"]


def option(name: str) -> str:
    """The value of one of the launcher's options, or of a setting."""
    (value,) = (part.partition("=")[2] for part in CONTAINER["args"] if part.startswith(f"{name}="))
    return value


@pytest.mark.parametrize("version", ["1.33", "1.37"])
@pytest.mark.parametrize("kind", OBJECTS)
def test_the_objects_fit_the_schemas(kind: str, version: str) -> None:
    kubernetes_validate.validate(OBJECTS[kind], version, strict=True)


def test_what_the_schema_does_not_know_is_refused() -> None:
    """So that the test above can fail."""
    wrong: dict[str, Any] = {**OBJECTS["Job"], "spec": {**JOB, "backoffLimitsPerIndex": 3}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, "1.33", strict=True)


def test_its_numbers_are_those_of_one_world() -> None:
    machines, processes = JOB["completions"], CONTAINER["resources"]["limits"]["nvidia.com/gpu"]
    assert JOB["parallelism"] == machines == int(option("--nnodes"))
    assert int(option("--nproc-per-node")) == processes
    assert int(option("parallel.world_size")) == machines * processes
    assert option("--node-rank") == "$(JOB_COMPLETION_INDEX)" and JOB["completionMode"] == "Indexed"


def test_pods_find_the_first_one_and_nobody_else_reaches_them() -> None:
    name = OBJECTS["Job"]["metadata"]["name"]
    service = OBJECTS["Service"]
    assert option("--master-addr") == f"{name}-0.{service['metadata']['name']}"
    assert POD["subdomain"] == service["metadata"]["name"] and service["spec"]["clusterIP"] == "None"
    pods = {"batch.kubernetes.io/job-name": name}
    policy = OBJECTS["NetworkPolicy"]["spec"]
    assert service["spec"]["selector"] == policy["podSelector"]["matchLabels"] == pods
    assert policy["ingress"] == [{"from": [{"podSelector": {"matchLabels": pods}}]}]


def test_each_kind_of_end_has_its_rule() -> None:
    mistake, stopped, disrupted = JOB["podFailurePolicy"]["rules"]
    assert (mistake["action"], mistake["onExitCodes"]["values"]) == ("FailJob", [2])
    assert (stopped["action"], stopped["onExitCodes"]["values"]) == ("Ignore", [STOPPED])
    assert (disrupted["action"], disrupted["onPodConditions"][0]["type"]) == ("Ignore", "DisruptionTarget")
    assert all(rule["onExitCodes"]["containerName"] == CONTAINER["name"] for rule in (mistake, stopped))
    assert POD["restartPolicy"] == "Never" and int(option("--max-restarts")) == 0
    assert POD["terminationGracePeriodSeconds"] >= 600
    assert CONTAINER["args"][0] == "supervise.sh"


def test_pods_have_no_rights_that_training_does_not_need() -> None:
    pod, container = POD["securityContext"], CONTAINER["securityContext"]
    assert pod["runAsNonRoot"] and pod["seccompProfile"]["type"] == "RuntimeDefault"
    assert POD["automountServiceAccountToken"] is False
    assert container["allowPrivilegeEscalation"] is False and container["readOnlyRootFilesystem"] is True
    assert container["capabilities"] == {"drop": ["ALL"]}
    secrets = [variable for variable in CONTAINER["env"] if "KEY" in variable["name"]]
    assert secrets and all("value" not in variable for variable in secrets)


def test_every_folder_that_is_written_to_is_a_volume() -> None:
    volumes = {volume["name"] for volume in POD["volumes"]}
    mounts = {mount["mountPath"]: mount["name"] for mount in CONTAINER["volumeMounts"]}
    assert volumes == set(mounts.values())
    for path in ("/runs", "/data", "/tmp", "/dev/shm", "/home/llmkit", "/workspace"):
        assert path in mounts
    (shared,) = (variable["value"] for variable in CONTAINER["env"] if variable["name"] == "SUPERVISE_DIR")
    assert shared.startswith(f"{option('run.dir')}/")
