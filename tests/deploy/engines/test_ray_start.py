"""Ray is open to the process that started it, and to nobody else."""

import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import ray

from metaleak.deploy.config.experiment import EngineSettings
from metaleak.deploy.engines.ray_start import start_ray, stop_ray

PROC = Path("/proc")
AUTHENTICATION = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
ALONE = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
"""Set to 0 as it is for our Ray, lets a process look for Ray at the loopback address."""
JOIN = "import ray, sys; ray.init(address=sys.argv[1], logging_level='ERROR'); print('joined')"

pytestmark = pytest.mark.skipif(not (PROC / "self" / "environ").exists(), reason="needs /proc to find the processes")


@pytest.fixture(scope="module")
def before():
    """Return this process's environment as it was before Ray started."""
    return dict(os.environ)


@pytest.fixture(scope="module")
def up(before):
    """Start Ray; return the address of its head."""
    start_ray(EngineSettings(actors=1))
    yield ray.get_runtime_context().gcs_address
    stop_ray()


def processes():
    """Return what `/proc` has of each process that this one has started, and those have started in turn."""
    parents = {}
    for process in PROC.glob("[0-9]*"):
        try:
            parents[int(process.name)] = int((process / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    found, wanted = [], {os.getpid()}
    while wanted:
        wanted = {child for child, parent in parents.items() if parent in wanted}
        found += [PROC / str(child) for child in wanted]
    return found


def token():
    """Return the token, as Ray's own processes have it."""
    for process in processes():
        for line in (process / "environ").read_bytes().split(b"\0"):
            if line.startswith(b"RAY_AUTH_TOKEN="):
                return line.partition(b"=")[2].decode()
    raise AssertionError("Ray's processes have no token")


def joining(address, **variables):
    """Start a foreign process that joins the cluster."""
    plain = {name: value for name, value in os.environ.items() if name not in AUTHENTICATION}
    return subprocess.Popen(
        [sys.executable, "-c", JOIN, address],
        env={**plain, "RAY_NUM_REDIS_GET_RETRIES": "2", ALONE: "0", **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_only_who_has_the_token_joins(up):
    own = {"RAY_AUTH_TOKEN": token(), "RAY_NUM_REDIS_GET_RETRIES": "20"}
    tried = [
        joining(up),
        joining(up, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN="0" * 64),
        joining(up, RAY_AUTH_MODE="token", **own),
    ]
    said = [process.communicate(timeout=240) for process in tried]
    refused = ["AuthenticationError" in err for _, err in said]
    assert refused == [True, True, False], said
    assert ["joined" in out for out, _ in said] == [False, False, True], said[2]


def test_the_token_is_in_no_command_line_no_file_and_not_in_this_environment(up):
    secret = token()
    assert len(secret) == 64
    assert all(secret.encode() not in (process / "cmdline").read_bytes() for process in processes())
    assert secret not in os.environ.values()
    folder = session_folder()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    files = [file for file in folder.rglob("*") if file.is_file()]
    assert files
    assert all(secret.encode() not in file.read_bytes() for file in files)


def session_folder():
    """Return the folder of all that Ray writes, from its processes' command lines."""
    lines = [(process / "cmdline").read_bytes().decode().split("\0") for process in processes()]
    (named,) = {word.partition("=")[2] for line in lines for word in line if word.startswith("--temp-dir=")}
    return Path(named).parent


@pytest.mark.skipif(not (PROC / "self" / "net" / "tcp").exists(), reason="needs /proc to find the ports")
def test_no_port_is_open_to_other_machines(up):
    own = {f"socket:[{line.split()[9]}]": line.split()[1] for line in listening()}
    found = []
    for process in (*processes(), PROC / "self"):
        for file in (process / "fd").iterdir():
            try:
                name = os.readlink(file)
            except OSError:
                continue
            if name in own:
                found.append(own[name].partition(":")[0])
    assert len(found) > 3
    # 127.0.0.1, by itself and as an IPv6 address.
    assert set(found) <= {"0100007F", "0000000000000000FFFF00000100007F"}


def listening():
    for name in ("tcp", "tcp6"):
        path = PROC / "self" / "net" / name
        for line in path.read_text().splitlines()[1:] if path.exists() else []:
            if line.split()[3] == "0A":
                yield line


def test_afterwards_the_process_is_as_it_was(before, up):
    folder, at_sigterm = session_folder(), signal.getsignal(signal.SIGTERM)
    stop_ray()
    assert not folder.exists()
    now = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    assert now == {name: value for name, value in before.items() if not name.startswith("PYTEST_")}
    try:
        ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False)
        assert (
            joining(ray.get_runtime_context().gcs_address, **{ALONE: "1"}).communicate(timeout=240)[0].strip()
            == "joined"
        )
    finally:
        ray.shutdown()
        signal.signal(signal.SIGTERM, at_sigterm)


def test_a_cluster_without_a_token_is_joined_with_a_warning(monkeypatch, caplog):
    monkeypatch.setattr(ray, "init", lambda **arguments: None)
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 2.0})
    assert start_ray(EngineSettings(ray_address="192.0.2.1:6379")) == 2
    (warning,) = caplog.messages
    assert "asks for no token" in warning
