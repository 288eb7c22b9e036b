"""The files that a user copies from `deploy/cluster`, as far as they can be checked without a cluster."""

import json
import re
import shutil
import stat
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.cli.flower_config import parse_superlink_connection
from packaging.specifiers import SpecifierSet
from ray.autoscaler._private.util import prepare_config, validate_config

from metaleak.deploy.config.reading import read_experiment

ROOT = Path(__file__).parents[3]
CLUSTER = ROOT / "deploy" / "cluster"
SCRIPT = CLUSTER / "make-credentials.sh"
PROGRAMS = Path(sys.executable).parent
COMPOSE = yaml.safe_load((CLUSTER / "compose.yaml").read_text())
SERVICES: dict[str, Any] = COMPOSE["services"]
RAY_CLUSTER = yaml.safe_load((CLUSTER / "ray-cluster.yaml").read_text())
MANIFESTS = {manifest["kind"]: manifest for manifest in yaml.safe_load_all((CLUSTER / "kuberay.yaml").read_text())}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())

needs_openssl = pytest.mark.skipif(
    shutil.which("openssl") is None or shutil.which("ssh-keygen") is None,
    reason="the script needs openssl and ssh-keygen",
)


def pinned(package: str) -> str:
    found = re.search(rf"^{package}==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert found, package
    return found[1]


def flags(command: list[str]) -> set[str]:
    return {part.split("=")[0] for part in command if part.startswith("--")}


def known_flags(*program: str) -> set[str]:
    """Return what the installed program's own help offers."""
    told = subprocess.run(
        [PROGRAMS / program[0], *program[1:], "--help"], capture_output=True, text=True, timeout=120, check=True
    )
    return set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", told.stdout))


# The script


def make(out: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([SCRIPT, "--out", out, *arguments], capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture(scope="module")
def credentials(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("cluster") / "credentials"
    told = make(out, "--host", "superlink", "--host", "192.0.2.7")
    assert told.returncode == 0, told.stderr
    return out


def test_the_script_is_valid_bash_and_explains_itself() -> None:
    assert subprocess.run(["bash", "-n", SCRIPT], check=False).returncode == 0
    assert SCRIPT.stat().st_mode & stat.S_IXUSR
    told = subprocess.run([SCRIPT, "--help"], capture_output=True, text=True, check=True).stdout
    taken = set(re.findall(r"(--[a-z]+)(?= \||\))", SCRIPT.read_text()))
    assert taken == {"--help", "--out", "--supernodes", "--days", "--host"}
    assert taken - {"--help"} <= set(re.findall(r"--[a-z]+", told))


@needs_openssl
def test_the_script_makes_what_compose_names(credentials: Path) -> None:
    named = [entry["file"] for kind in ("secrets", "configs") for entry in COMPOSE[kind].values() if "file" in entry]
    assert {Path(file).parts[0] for file in named} == {"credentials"}
    assert {Path(file).name for file in named} == {file.name for file in credentials.iterdir()} - {"ca.key"}


@needs_openssl
def test_private_files_are_for_their_owner_alone(credentials: Path) -> None:
    modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in credentials.iterdir()}
    public = {name for name in modes if name.endswith((".pem", ".pub"))}
    assert {modes[name] for name in public} == {0o644}
    assert {modes[name] for name in set(modes) - public} == {0o600}
    assert stat.S_IMODE(credentials.stat().st_mode) == 0o700


@needs_openssl
def test_the_script_overwrites_nothing_and_leaves_nothing_beside(credentials: Path) -> None:
    before = {file: file.read_bytes() for file in credentials.iterdir()}
    told = make(credentials)
    assert told.returncode == 1
    assert "left as it is" in told.stderr
    assert {file: file.read_bytes() for file in credentials.iterdir()} == before
    assert list(credentials.parent.iterdir()) == [credentials]


@needs_openssl
def test_the_keys_are_such_as_flower_reads(credentials: Path) -> None:
    seen = set()
    for number in (1, 2, 3):
        file = credentials / f"supernode-{number}"
        private = serialization.load_ssh_private_key(file.read_bytes(), password=None)
        public = serialization.load_ssh_public_key(file.with_suffix(".pub").read_bytes())
        assert isinstance(private, ec.EllipticCurvePrivateKey)
        assert isinstance(public, ec.EllipticCurvePublicKey)
        assert public.curve.name == "secp384r1"
        assert private.public_key() == public
        seen.add(public.public_numbers())
    assert len(seen) == 3
    assert not (credentials / "supernode-4").exists()


@needs_openssl
def test_the_certificate_is_signed_and_names_the_hosts(credentials: Path) -> None:
    authority = x509.load_pem_x509_certificate((credentials / "ca.pem").read_bytes())
    server = x509.load_pem_x509_certificate((credentials / "server.pem").read_bytes())
    server.verify_directly_issued_by(authority)
    assert authority.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert not server.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    names = server.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["localhost", "superlink"]
    assert [str(ip) for ip in names.get_values_for_type(x509.IPAddress)] == ["127.0.0.1", "192.0.2.7"]
    key = serialization.load_pem_private_key((credentials / "server.key").read_bytes(), password=None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    assert key.public_key() == server.public_key()


@pytest.mark.parametrize(
    "wrong",
    [
        ["--supernodes", "0"],
        ["--supernodes", "three"],
        ["--days", "-1"],
        ["--host", "a,DNS:b"],
        ["--host"],
        ["--hots", "a"],
    ],
    ids=" ".join,
)
def test_wrong_usage_makes_nothing(wrong: list[str], tmp_path: Path) -> None:
    told = make(tmp_path / "made", *wrong)
    assert told.returncode == 2
    assert told.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


# Compose and the image


@pytest.mark.parametrize("program", ["flower-superlink", "flower-supernode"])
def test_the_installed_flower_takes_every_flag_of_compose(program: str) -> None:
    commands = [service["command"] for service in SERVICES.values() if service.get("command", [""])[0] == program]
    assert len(commands) == {"flower-superlink": 1, "flower-supernode": 3}[program]
    assert set().union(*map(flags, commands)) <= known_flags(program)


def test_each_service_sees_the_private_files_that_it_needs_and_no_other() -> None:
    private = {
        name: {secret for secret in service.get("secrets", []) if not secret.endswith(".pem")}
        for name, service in SERVICES.items()
    }
    assert private == {
        "superlink": {"server.key"},
        "supernode-1": {"supernode-1"},
        "supernode-2": {"supernode-2"},
        "supernode-3": {"supernode-3"},
        "flwr": set(),
    }
    for service in SERVICES.values():
        told = json.dumps([service.get("command"), service.get("healthcheck")])
        used = set(re.findall(r"/run/secrets/([\w.-]+)", told))
        given = set(service.get("secrets", []))
        assert used <= given <= set(COMPOSE["secrets"])
        # The tool's own file is the one that names a certificate for it.
        assert used == given or service.get("entrypoint") == ["flwr"]


def test_every_port_in_compose_is_the_superlinks() -> None:
    superlink = SERVICES["superlink"]
    port = next(part.split("=")[1] for part in superlink["command"] if part.startswith("--port="))
    assert superlink["ports"] == [f"127.0.0.1:{port}:{port}"]
    assert f"https://127.0.0.1:{port}/" in superlink["healthcheck"]["test"][-1]
    for name in ("supernode-1", "supernode-2", "supernode-3"):
        assert f"--superlink=superlink:{port}" in SERVICES[name]["command"]
    table = tomllib.loads(COMPOSE["configs"]["flower"]["content"])["superlink"]
    connection = parse_superlink_connection(table[table["default"]], table["default"])
    assert connection.address == f"superlink:{port}"
    assert connection.insecure is False
    assert connection.root_certificates == "/run/secrets/ca.pem"


def test_whatever_compose_mounts_is_declared_and_writable() -> None:
    made = next(line for line in dockerfile() if "install --directory" in line)
    for service in SERVICES.values():
        for mount in service.get("volumes", []):
            volume, place = mount.split(":")
            assert volume in COMPOSE["volumes"]
            # A new volume takes its owner from the image's folder of that name.
            assert place in made.split()
        for config in service.get("configs", []):
            assert config["source"] in COMPOSE["configs"]
    assert any(part.startswith("--database=/state/") for part in SERVICES["superlink"]["command"])


def test_every_service_runs_the_image_of_the_dockerfile() -> None:
    for service in SERVICES.values():
        assert service["image"] == COMPOSE["x-image"]["image"]
        assert (CLUSTER / service["build"]["context"]).resolve() == ROOT
        assert (ROOT / service["build"]["dockerfile"]) == CLUSTER / "Dockerfile"
        (argument,) = service["build"]["args"]
        assert f"ARG {argument}=1000" in dockerfile()


def dockerfile() -> list[str]:
    """Return the instructions, one a line."""
    text = re.sub(r"^#.*\n", "", (CLUSTER / "Dockerfile").read_text(), flags=re.MULTILINE)
    return [line for line in text.replace("\\\n", " ").splitlines() if line.strip()]


def test_the_image_has_a_python_that_the_project_takes() -> None:
    (base,) = [line.split()[1] for line in dockerfile() if line.startswith("FROM")]
    version = re.fullmatch(r"python:(\d+\.\d+)-slim", base)
    assert version, base
    assert SpecifierSet(PROJECT["project"]["requires-python"]).contains(f"{version[1]}.0")


def test_the_image_copies_all_that_the_package_is_built_from() -> None:
    copies = [line.split()[1:] for line in dockerfile() if line.startswith("COPY")]
    sources = {source for copy in copies for source in copy[:-1] if not source.startswith("--")}
    assert all((ROOT / source).exists() for source in sources)
    needed = {Path(folder).parts[0] for folder in PROJECT["tool"]["setuptools"]["package-dir"].values()}
    assert needed | {"pyproject.toml", "constraints.txt", PROJECT["project"]["readme"]} <= sources
    ignored = (CLUSTER / "Dockerfile.dockerignore").read_text().splitlines()
    assert {f"!{source.split('/')[0]}" for source in sources} == {line for line in ignored if line.startswith("!")}
    # The last line that fits decides: credentials must not get into an image.
    assert ignored.index("*") < ignored.index("!deploy") < ignored.index("deploy/cluster")


def test_the_image_is_installed_with_the_constraints_and_runs_as_nobody_special() -> None:
    lines = dockerfile()
    (install,) = [line for line in lines if "pip install" in line]
    assert "--constraint constraints.txt '.[all]' " in install
    user = next(line for line in lines if line.startswith("USER"))
    assert user == "USER metaleak"
    assert lines.index(user) > lines.index(install)
    assert any("useradd" in line and "metaleak" in line for line in lines)


# Ray


def test_ray_accepts_the_cluster_file() -> None:
    complete = prepare_config(RAY_CLUSTER)
    validate_config(complete)
    assert complete["max_workers"] == len(RAY_CLUSTER["provider"]["worker_ips"]) == 2


def test_every_ray_process_asks_for_the_same_token() -> None:
    assert RAY_CLUSTER["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    started = RAY_CLUSTER["head_start_ray_commands"] + RAY_CLUSTER["worker_start_ray_commands"]
    starts = [line for line in started if "ray start" in line]
    assert len(starts) == 2
    assert all("RAY_AUTH_MODE=token " in line for line in starts)
    for container in containers():
        mode, token = container["env"]
        assert mode == {"name": "RAY_AUTH_MODE", "value": "token"}
        assert token["name"] == "RAY_AUTH_TOKEN"
        assert token["valueFrom"] == {"secretKeyRef": {"name": "metaleak-ray", "key": "token"}}


def test_the_cluster_file_installs_with_the_constraints_where_it_starts_ray() -> None:
    (mounted,) = [path for path, source in RAY_CLUSTER["file_mounts"].items() if source == "."]
    (install,) = [line for line in RAY_CLUSTER["setup_commands"] if "pip install" in line]
    assert f"cd {mounted} " in install
    assert "--constraint constraints.txt '.[all]' " in install
    (environment,) = re.findall(r"(\S+)/bin/python ", install)
    started = RAY_CLUSTER["head_start_ray_commands"] + RAY_CLUSTER["worker_start_ray_commands"]
    assert len(started) == 4
    for line in started:
        assert f"{environment}/bin/ray " in line
    used = set().union(*(flags(line.split()) for line in started))
    assert {"--head", "--address", "--port", "--autoscaling-config"} <= used <= known_flags("ray", "start")
    assert "deploy/cluster/credentials" in RAY_CLUSTER["rsync_exclude"]


def test_the_head_listens_where_the_workers_look() -> None:
    head = RAY_CLUSTER["head_start_ray_commands"][-1]
    port = re.search(r"--port=(\d+)", head)
    assert port
    assert f"--address=$RAY_HEAD_IP:{port[1]}" in RAY_CLUSTER["worker_start_ray_commands"][-1]


def groups() -> list[dict[str, Any]]:
    spec = MANIFESTS["RayCluster"]["spec"]
    return [spec["headGroupSpec"], *spec["workerGroupSpecs"]]


def containers() -> list[dict[str, Any]]:
    return [container for group in groups() for container in group["template"]["spec"]["containers"]]


def test_the_manifests_are_of_the_kinds_that_kuberay_reads() -> None:
    assert {kind: manifest["apiVersion"] for kind, manifest in MANIFESTS.items()} == {
        "ConfigMap": "v1",
        "RayCluster": "ray.io/v1",
    }
    spec = MANIFESTS["RayCluster"]["spec"]
    assert set(spec) == {"rayVersion", "headGroupSpec", "workerGroupSpecs"}
    assert spec["rayVersion"] == pinned("ray")
    names = [group["groupName"] for group in spec["workerGroupSpecs"]]
    assert len(set(names)) == len(names) > 0
    for group in spec["workerGroupSpecs"]:
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    for group in groups():
        # The operator turns these into flags of `ray start`, and takes only texts.
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
    for text in [manifest["metadata"]["name"] for manifest in MANIFESTS.values()] + names:
        assert re.fullmatch(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?", text)


def test_every_pod_runs_the_same_image_as_compose() -> None:
    images = {container["image"] for container in containers()}
    assert images == {f"{COMPOSE['x-image']['image']}:latest"}
    # An image of this machine: not looked for anywhere else while it is there.
    assert {container["imagePullPolicy"] for container in containers()} == {"IfNotPresent"}
    for group in groups():
        assert group["template"]["spec"]["securityContext"]["runAsNonRoot"] is True


def processors(quantity: str) -> float:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)(m?)", quantity)
    assert found, quantity
    return float(found[1]) / (1000 if found[2] else 1)


def test_the_pods_ask_for_quantities_that_kubernetes_reads() -> None:
    for container in containers():
        resources = container["resources"]
        assert set(resources) == {"requests", "limits"}
        for kind in resources.values():
            assert processors(kind["cpu"]) > 0
            assert re.fullmatch(r"[1-9]\d*(Ki|Mi|Gi|Ti)", kind["memory"])
        # Ray sees the limits; with smaller requests it would count on what it may not get.
        assert resources["requests"] == resources["limits"]


def test_every_mounted_volume_exists() -> None:
    for group in groups():
        pod = group["template"]["spec"]
        volumes = {volume["name"]: volume for volume in pod.get("volumes", [])}
        mounted = {mount["name"] for container in pod["containers"] for mount in container.get("volumeMounts", [])}
        assert mounted == set(volumes)
        for volume in volumes.values():
            if "configMap" in volume:
                assert volume["configMap"]["name"] == MANIFESTS["ConfigMap"]["metadata"]["name"]


def test_the_experiment_fits_the_cluster(tmp_path: Path) -> None:
    ((name, text),) = MANIFESTS["ConfigMap"]["data"].items()
    (tmp_path / name).write_text(text)
    experiment = read_experiment(tmp_path / name)
    offered = sum(
        group["replicas"] * int(processors(group["template"]["spec"]["containers"][0]["resources"]["limits"]["cpu"]))
        for group in MANIFESTS["RayCluster"]["spec"]["workerGroupSpecs"]
    )
    assert experiment.engine.actors == offered
    assert MANIFESTS["RayCluster"]["spec"]["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"


def test_the_commands_in_the_comments_are_true() -> None:
    comments = "".join(re.findall(r"^#(.*\n)", (CLUSTER / "kuberay.yaml").read_text(), re.MULTILINE))
    comments = comments.replace("\\\n", "")
    assert "ray.io/cluster=" + MANIFESTS["RayCluster"]["metadata"]["name"] in comments
    (simulate,) = re.findall(r"metaleak simulate .*", comments)
    places = {
        mount["name"]: mount["mountPath"] for container in containers() for mount in container.get("volumeMounts", [])
    }
    assert f" {places['experiment']}/{next(iter(MANIFESTS['ConfigMap']['data']))} " in simulate
    assert f"--out {places['runs']}/" in simulate
    assert flags(simulate.split()) <= known_flags("metaleak", "simulate")


# The folder


def test_the_readme_names_every_file_and_no_other() -> None:
    named = set(re.findall(r"^\| `([^`]+)` \|", (CLUSTER / "README.md").read_text(), re.MULTILINE))
    hidden = {"README.md", ".gitignore", "Dockerfile.dockerignore", "credentials"}
    assert named == {file.name for file in CLUSTER.iterdir()} - hidden


def test_git_does_not_see_credentials() -> None:
    assert "/credentials/" in (CLUSTER / ".gitignore").read_text().splitlines()
