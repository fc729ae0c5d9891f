"""The container files: pinned images, no root, health checks, no secret; what needs Docker itself says so."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from annotated_types import Le

from lakerec import __version__
from lakerec.config import Airflow, load_config

DOCKER = Path(__file__).resolve().parents[2] / "docker"
TEXT = (DOCKER / "compose.yaml").read_text()
COMPOSE: dict[str, Any] = yaml.safe_load(TEXT)
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
DOCKERFILE = (DOCKER / "Dockerfile").read_text()
EXAMPLE = dict(re.findall(r"^#?([A-Z_]+)=(.*)$", (DOCKER / "example.env").read_text(), re.MULTILINE))
SECRETS = re.compile(r"(PASSWORD|SECRET|KEY)$|_SECRET_")
VARIABLE = re.compile(r"\$\{([A-Z_]+)[^}]*\}")
each_service = pytest.mark.parametrize("name", SERVICES)


def once(name: str) -> bool:
    """Whether the others wait for a service's end: it has no health."""
    ended = {"condition": "service_completed_successfully"}
    return any(each.get("depends_on", {}).get(name) == ended for each in SERVICES.values())


@each_service
def test_a_service_has_a_pinned_image_no_root_no_capability_and_a_health_check(name: str) -> None:
    service = SERVICES[name]
    image = re.sub(r"\$\{LAKEREC_IMAGE:-(.+)\}", r"\1", service["image"])
    assert re.fullmatch(r"[a-z]+:\d+\.\d+\.?\d*(-bookworm)?", image)
    assert image.split(":")[0] != "lakerec" or image == f"lakerec:{__version__}" == EXAMPLE["LAKEREC_IMAGE"]
    assert int(service["user"].split(":")[0]) > 0
    assert (service["cap_drop"], service["security_opt"]) == (["ALL"], ["no-new-privileges:true"])
    assert once(name) or service["healthcheck"]["test"][0] in ("CMD", "CMD-SHELL")


@each_service
def test_what_is_published_is_on_loopback(name: str) -> None:
    assert all(port.startswith("127.0.0.1:") for port in SERVICES[name].get("ports", []))


@each_service
def test_a_secret_comes_from_the_environment(name: str) -> None:
    for key, value in SERVICES[name].get("environment", {}).items():
        assert not SECRETS.search(key) or re.fullmatch(r"\$\{[^}]+\}", value), key
        assert all(password.startswith("${") for password in re.findall(r"://\w*:([^@]+)@", value)), key
    if name.startswith("spark"):
        assert not any(SECRETS.search(key) or "://" in value for key, value in SERVICES[name]["environment"].items())


def test_every_variable_is_in_the_example_and_no_secret_has_a_value() -> None:
    assert set(VARIABLE.findall(TEXT)) <= set(EXAMPLE)
    secrets = {key for key in EXAMPLE if SECRETS.search(key)}
    assert secrets >= {"POSTGRES_PASSWORD", "REDIS_PASSWORD", "AIRFLOW_ADMIN_PASSWORD", "AIRFLOW_FERNET_KEY"}
    assert {EXAMPLE[key] for key in secrets} == {""}
    if (DOCKER.parent / ".git").exists():
        ignored = ["git", "check-ignore", "--quiet", "docker/.env"]
        assert subprocess.run(ignored, cwd=DOCKER.parent).returncode == 0


def test_every_volume_and_every_service_that_is_named_exists() -> None:
    named = [volume.split(":")[0] for each in SERVICES.values() for volume in each.get("volumes", [])]
    assert {name for name in named if name.isalpha()} == set(COMPOSE["volumes"])
    assert {name for each in SERVICES.values() for name in each.get("depends_on", {})} <= set(SERVICES)
    queues = {each["command"][4] for each in SERVICES.values() if each.get("command", [])[:2] == ["airflow", "celery"]}
    assert queues == {"default", EXAMPLE["LAKEREC_GPU_QUEUE"]}


def test_the_image_is_pinned_and_runs_as_a_user_of_its_own() -> None:
    (base,) = re.findall(r"^ARG PYTHON=(.+)$", DOCKERFILE, re.MULTILINE)
    assert re.fullmatch(r"python:3\.11\.\d+-slim-bookworm", base)
    assert set(re.findall(r"^FROM (\S+)", DOCKERFILE, re.MULTILINE)) == {"${PYTHON}", "base"}
    assert re.findall(r"^USER (\S+)$", DOCKERFILE.rsplit("\nFROM ", 1)[1], re.MULTILINE) == ["10001:10001"]
    assert SERVICES["airflow-worker"]["user"] == "10001:10001"


def test_the_deployment_of_the_containers_is_a_configuration() -> None:
    config = load_config(DOCKER / "deployments" / "demo.yaml")
    assert (config.spark.master, config.lake) == ("spark://spark-master:7077", "/mnt/lakerec/demo")


@pytest.mark.parametrize("script", ["entrypoint", "gpus", "prepare"])
def test_a_script_is_one(script: str) -> None:
    file = DOCKER / f"{script}.sh"
    assert os.access(file, os.X_OK)
    assert subprocess.run(["bash", "-n", str(file)]).returncode == 0


def stub(place: Path, text: str) -> None:
    """A program in the place of a real one."""
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(f"#!/bin/sh\n{text}\n")
    place.chmod(0o755)


def said(script: str, *arguments: str, **known: str) -> list[str]:
    """The lines that a script's end prints."""
    command = ["bash", str(DOCKER / script), *arguments]
    return subprocess.run(command, env=os.environ | known, capture_output=True, text=True, check=True).stdout.split(
        "\n"
    )


def test_a_container_starts_what_spark_on_kubernetes_asks_for(tmp_path: Path) -> None:
    for name in ("java/bin/java", "spark/bin/spark-submit"):
        stub(tmp_path / name, """printf '%s\\n' "$@" """)
    names = ("DRIVER_URL", "EXECUTOR_ID", "EXECUTOR_CORES", "APPLICATION_ID", "EXECUTOR_POD_IP", "RESOURCE_PROFILE_ID")
    facts = {f"SPARK_{name}": name.lower() for name in (*names, "EXECUTOR_POD_NAME")} | {"SPARK_EXECUTOR_MEMORY": "2g"}
    flags = {f"SPARK_JAVA_OPT_{n}": f"-Dn={n} of 12" for n in (10, 2, 1)}
    known = {"JAVA_HOME": str(tmp_path / "java"), "SPARK_HOME": str(tmp_path / "spark"), **facts, **flags}
    found = said("entrypoint.sh", "executor", **known)
    assert found[:5] == ["-Dn=1 of 12", "-Dn=2 of 12", "-Dn=10 of 12", "-Xms2g", "-Xmx2g"]
    backend = found[found.index("org.apache.spark.scheduler.cluster.k8s.KubernetesExecutorBackend") + 1 :]
    assert backend[:4] == ["--driver-url", "driver_url", "--executor-id", "executor_id"]
    assert backend[-3:] == ["--podName", "executor_pod_name", ""]
    driver = said("entrypoint.sh", "driver", "--properties-file", "a b", SPARK_DRIVER_BIND_ADDRESS="10.0.0.7", **known)
    bound = ["--conf", "spark.driver.bindAddress=10.0.0.7", "--deploy-mode", "client", "--properties-file", "a b", ""]
    assert driver == bound
    assert said("entrypoint.sh", "echo", "a b") == ["a b", ""]


@pytest.mark.parametrize("transport", ["", '{"type": "http", "url": "http://marquez:5000"}'])
def test_airflow_in_a_container_sends_its_lineage_where_the_deployment_says(tmp_path: Path, transport: str) -> None:
    stub(
        tmp_path / ".venv/bin/lakerec",
        f"""[ "$*" = 'spark-conf --config shop.yaml --lineage' ] && echo '{transport}'""",
    )
    stub(
        tmp_path / "bin/airflow",
        """printf '%s\\n' "$*" "$AIRFLOW__OPENLINEAGE__DISABLED" "$AIRFLOW__OPENLINEAGE__TRANSPORT" """,
    )
    (tmp_path / "scripts").symlink_to(DOCKER.parent / "scripts")
    known = {"LAKEREC_HOME": str(tmp_path), "LAKEREC_CONFIG": "shop.yaml"}
    known["PATH"] = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
    assert said("entrypoint.sh", "airflow", "scheduler", **known) == ["scheduler", str(not transport), transport, ""]


@pytest.mark.parametrize("count", [0, 1, 3])
def test_gpus_are_found_as_spark_expects_them(tmp_path: Path, count: int) -> None:
    stub(tmp_path / "nvidia-smi", f"seq 0 {count - 1}")
    found = "\n".join(said("gpus.sh", PATH=f"{tmp_path}:{os.environ['PATH']}"))
    assert json.loads(found) == {"name": "gpu", "addresses": [str(n) for n in range(count)]}


def test_docker_itself_finds_nothing_wrong(tmp_path: Path) -> None:
    try:
        there = subprocess.run(["docker", "compose", "version"], capture_output=True).returncode == 0
    except FileNotFoundError:
        there = False
    if not there:
        pytest.skip("needs Docker with its plugin compose")
    filled = tmp_path / "filled.env"
    filled.write_text("".join(f"{key}={value or 'x'}\n" for key, value in EXAMPLE.items()))
    told = ["--file", str(DOCKER / "compose.yaml"), "--profile", "gpu", "--env-file", str(filled)]
    command = ["docker", "compose", *told, "config", "--quiet"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_image_has_every_package_of_airflows_environment_at_the_same_version() -> None:
    folder = DOCKER.parent / "requirements"
    alone, image = (set((folder / name).read_text().split("\n")) for name in ("airflow.txt", "airflow-cluster.txt"))
    assert alone <= image


def test_what_else_the_containers_need_comes_from_files_that_git_ignores() -> None:
    named = {name: file["path"] for name, each in SERVICES.items() for file in each.get("env_file", [])}
    airflow = {name for name in SERVICES if name.startswith("airflow")}
    assert named == dict.fromkeys(airflow, "airflow.env") | {"spark-worker": "spark.env"}
    assert not any(file["required"] for each in SERVICES.values() for file in each.get("env_file", []))
    for name in set(named.values()):
        assert f"docker/{name}" in (DOCKER / "example.env").read_text()
        if (DOCKER.parent / ".git").exists():
            ignored = ["git", "check-ignore", "--quiet", f"docker/{name}"]
            assert subprocess.run(ignored, cwd=DOCKER.parent).returncode == 0


def test_redis_delivers_no_task_twice_while_it_may_still_run() -> None:
    known = SERVICES["airflow-worker"]["environment"]
    longest = max(one.le for field in Airflow.model_fields.values() for one in field.metadata if isinstance(one, Le))
    assert int(known["AIRFLOW__CELERY_BROKER_TRANSPORT_OPTIONS__VISIBILITY_TIMEOUT"]) > 60 * longest >= 60 * 2880


def test_two_applications_find_cores_on_the_containers_cluster() -> None:
    cores = int(EXAMPLE["SPARK_WORKER_CORES"]) * SERVICES["spark-worker"]["deploy"]["replicas"]
    known = load_config(DOCKER / "deployments" / "demo.yaml").spark.properties
    assert 2 * int(known["spark.cores.max"]) <= cores
