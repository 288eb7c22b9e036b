"""The Flower app on Flower's deployment engine: the processes of `deploy/cluster/compose.yaml`, on this machine."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
import pytest
import yaml

from metaleak.server import Record

ROOT = Path(__file__).parents[3]
CLUSTER = ROOT / "deploy" / "cluster"
COMPOSE = yaml.safe_load((CLUSTER / "compose.yaml").read_text())
SUPERNODES = [name for name in COMPOSE["services"] if name.startswith("supernode-")]
PROGRAMS = Path(sys.executable).parent

# Two learners for each of the three SuperNodes.
CHANGES = (
    "rounds=2; partition.learners=6; engine.learners_per_node=2; engine.chunk=2; data.name=digits; task.ways=3; "
    "evaluation.tasks=10; evaluation.queries=3; attacks=[]"
)

pytestmark = [
    pytest.mark.slow,  # each message starts a process of its own
    pytest.mark.skipif(
        shutil.which("openssl") is None or shutil.which("ssh-keygen") is None,
        reason="the script that makes keys needs openssl and ssh-keygen",
    ),
]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until(true: Callable[[], bool], seconds: float, what: Callable[[], str]) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, what()
        time.sleep(0.2)


def make_credentials(out: Path, supernodes: int) -> Path:
    subprocess.run(
        [CLUSTER / "make-credentials.sh", "--out", out, "--supernodes", str(supernodes)],
        check=True,
        capture_output=True,
        timeout=60,
    )
    return out


@dataclass
class Deployment:
    """What `compose.yaml` describes, as plain processes around one free port of this machine."""

    folder: Path
    credentials: Path
    port: int = field(default_factory=free_port)
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def here(self, text: str, secrets: Path | None = None) -> str:
        """Return what stands in `compose.yaml` with the places of this machine."""
        for theirs, ours in {
            "/run/secrets": str(secrets or self.credentials),
            "/state": str(self.folder),
            "0.0.0.0": "127.0.0.1",
            "superlink:8000": f"127.0.0.1:{self.port}",
            "127.0.0.1:8000": f"127.0.0.1:{self.port}",
            "--port=8000": f"--port={self.port}",
        }.items():
            text = text.replace(theirs, ours)
        return text

    def environment(self, who: str) -> dict[str, str]:
        # Each has its own home, as on machines of their own: they unpack the app there.
        home = self.folder / "homes" / who
        home.mkdir(parents=True, exist_ok=True)
        (home / "config.toml").write_text(self.here(COMPOSE["configs"]["flower"]["content"]))
        return {
            **{name: value for name, value in os.environ.items() if not name.startswith("FLWR_")},
            "FLWR_HOME": str(home),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.1",
            "METALEAK_TEST_MARKER": str(self.folder),
            # Flower finds its own programs by name, as in an activated environment.
            "PATH": f"{PROGRAMS}{os.pathsep}{os.environ['PATH']}",
        }

    def start(self, who: str, command: list[str]) -> subprocess.Popen[bytes]:
        with open(self.folder / f"{who}.log", "wb") as log:
            process = subprocess.Popen(
                [PROGRAMS / command[0], *command[1:]],
                env=self.environment(who),
                cwd=self.folder,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        self.processes.append(process)
        return process

    def start_superlink(self) -> None:
        service = COMPOSE["services"]["superlink"]
        superlink = self.start("superlink", [self.here(part) for part in service["command"]])
        how, program, *arguments = service["healthcheck"]["test"]
        assert (how, program) == ("CMD", "python")

        def is_healthy() -> bool:
            assert superlink.poll() is None, self.said("superlink")
            question = [sys.executable, *(self.here(argument) for argument in arguments)]
            return subprocess.run(question, capture_output=True, timeout=30, check=False).returncode == 0

        wait_until(is_healthy, 60, lambda: self.said("superlink"))

    def start_supernode(self, service: str, who: str, command: list[str] | None = None) -> subprocess.Popen[bytes]:
        command = command or [self.here(part) for part in COMPOSE["services"][service]["command"]]
        # In a container of its own each may keep the same port for the processes that it starts.
        return self.start(who, [*command, f"--port={free_port()}"])

    def flwr(self, *arguments: object, timeout: float = 60) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [PROGRAMS / "flwr", *(str(argument) for argument in arguments)],
            env=self.environment("user"),
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    def register(self, key: str) -> int:
        told = self.flwr("supernode", "register", self.credentials / f"{key}.pub", "--format", "json")
        assert told.returncode == 0, told.stdout + told.stderr
        return int(json.loads(told.stdout)["node-id"])

    def nodes(self) -> dict[int, str]:
        """Return what the SuperLink's own list says of each node."""
        told = self.flwr("supernode", "list", "--format", "json")
        assert told.returncode == 0, told.stdout + told.stderr
        return {int(node["node-id"]): node["status"] for node in json.loads(told.stdout)["nodes"]}

    def said(self, who: str) -> str:
        return (self.folder / f"{who}.log").read_text(errors="replace")[-4000:]

    def refusal(self, who: str, command: list[str]) -> str:
        """Start a SuperNode that is expected to give up by itself, and return its last words."""
        process = self.start_supernode("", who, command)
        try:
            code = process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            pytest.fail(f"{who} was not refused: {self.said(who)}")
        assert code != 0, self.said(who)
        return self.said(who)

    def alive(self) -> list[int]:
        """Return the processes that have this deployment's mark in their environment, as those that Flower starts."""
        mark = f"METALEAK_TEST_MARKER={self.folder}".encode()
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            try:
                marked = mark in (process / "environ").read_bytes().split(b"\0")
                # A process that has ended and whose parent has not asked for it yet has no command line.
                if marked and (process / "cmdline").read_bytes():
                    found.append(int(process.name))
            except OSError:
                continue
        return found

    def end(self) -> None:
        for process in reversed(self.processes):
            process.terminate()
        for process in self.processes:
            try:
                process.wait(timeout=5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        # What Flower itself started does not always end with its parent.
        for number in self.alive():
            os.kill(number, signal.SIGKILL)
        wait_until(lambda: not self.alive(), 10, lambda: f"left behind: {self.alive()}")


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    folder = tmp_path_factory.mktemp("deployment")
    deployed = Deployment(folder, make_credentials(folder / "credentials", len(SUPERNODES) + 1))
    try:
        deployed.start_superlink()
        yield deployed
    finally:
        deployed.end()


@pytest.fixture(scope="module")
def nodes(deployment: Deployment) -> set[int]:
    """The ids of the SuperNodes of `compose.yaml`, which are registered and connected."""
    registered = {deployment.register(name) for name in SUPERNODES}
    for name in SUPERNODES:
        deployment.start_supernode(name, name)

    def connected() -> bool:
        return deployment.nodes() == dict.fromkeys(registered, "online")

    wait_until(connected, 90, lambda: "\n".join(deployment.said(name) for name in SUPERNODES))
    return registered


@pytest.fixture(scope="module")
def strangers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Credentials of somebody else, made by the same script."""
    return make_credentials(tmp_path_factory.mktemp("strangers") / "credentials", 1)


def supernode(deployment: Deployment, *, authority: Path, key: Path | None) -> list[str]:
    command = [
        "flower-supernode",
        f"--superlink=127.0.0.1:{deployment.port}",
        f"--root-certificates={authority}",
    ]
    return command if key is None else [*command, f"--auth-supernode-private-key={key}"]


def test_three_supernodes_do_two_rounds_each_for_its_own_learners(deployment: Deployment, nodes: set[int]) -> None:
    out = deployment.folder / "out"
    told = deployment.flwr(
        *("run", ROOT / "deploy" / "flower_app", "--stream"),
        *("-c", f'set="{CHANGES}" out="{out}"'),
        timeout=240,
    )
    assert (out / "run.json").exists(), told.stdout[-3000:] + told.stderr[-3000:] + deployment.said("superlink")
    said = json.loads((out / "run.json").read_text())
    assert (said["status"], said["error"]) == ("done", None), told.stdout[-3000:]
    record = Record(out / "record")
    assert record.rounds == [1, 2]
    for round in record.rounds:
        assert record.received(round)[0] == list(range(6))
    hosts: dict[int, set[int]] = {}
    for row in pd.read_parquet(out / "record" / "index").itertuples():
        hosts.setdefault(int(row.node), set()).add(int(row.learner))
    assert set(hosts) == nodes
    assert sorted(map(sorted, hosts.values())) == [[0, 1], [2, 3], [4, 5]]


def test_an_unregistered_supernode_is_refused(deployment: Deployment, nodes: set[int], strangers: Path) -> None:
    said = deployment.refusal(
        "unregistered",
        supernode(deployment, authority=deployment.credentials / "ca.pem", key=strangers / "supernode-1"),
    )
    assert "Failed to activate SuperNode" in said
    assert "No SuperNode found with the given public key" in deployment.said("superlink")
    assert deployment.nodes() == dict.fromkeys(nodes, "online")


def test_a_supernode_without_a_key_is_refused(deployment: Deployment, nodes: set[int]) -> None:
    said = deployment.refusal("keyless", supernode(deployment, authority=deployment.credentials / "ca.pem", key=None))
    assert "All SuperNodes must be registered" in said
    assert deployment.nodes() == dict.fromkeys(nodes, "online")


def test_a_supernode_with_the_certificate_of_another_authority_is_refused(
    deployment: Deployment, nodes: set[int], strangers: Path
) -> None:
    # Its key is registered: only the certificate stands between it and the SuperLink.
    spare = f"supernode-{len(SUPERNODES) + 1}"
    node = deployment.register(spare)
    said = deployment.refusal(
        "misled",
        supernode(deployment, authority=strangers / "ca.pem", key=deployment.credentials / spare),
    )
    assert "certificate verify failed" in said
    assert deployment.nodes() == {**dict.fromkeys(nodes, "online"), node: "registered"}
