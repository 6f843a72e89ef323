"""What `make dist` makes, used as by somebody who has nothing else: no checkout, and no packages."""

from __future__ import annotations

import ast
import fcntl
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from zipfile import ZipFile

import pytest
import requests
from server import ENDS, ROOT, Server

sys.path.insert(0, str(ROOT / "packaging"))

import build  # noqa: E402

PROGRAM = b"import sys\ndef main():\n    print(sys.argv[1:])\n"
BUILD = [sys.executable, str(ROOT / "packaging" / "build.py")]
LONG = 'program: {type: procstar-shell, command: "echo begun; until test -e $GO; do sleep 0.05; done"}\n'
MONTH = 31 * 86400.0
# What would help it along, and is not there for users.
HELPFUL = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "XDG_CACHE_HOME", "CACHE_DIRECTORY", "APSIS_HOST")


# Prints where packages are that could be the machine's own, and needs data files of one of them.
IMPORT = """
import pathlib, sys
sys.path.insert(0, sys.argv[1])
import unpack_apsis
sys.path[0] = str(unpack_apsis.find(pathlib.Path(sys.argv[1])))
import boto3, jinja2, msgpack, wsproto, yaml
boto3.client("ecs", region_name="eu-west-1", aws_access_key_id="x", aws_secret_access_key="x")
print(*(module.__file__ for module in (boto3, jinja2, msgpack, wsproto, yaml)))
"""


def base_python() -> str:
    """The Python that the tests' own environment was made by: it has none of its packages."""
    return os.path.realpath(sys.executable)


def pythons() -> list[str]:
    """It, and one of each other version from 3.11 on that this machine has."""
    found = {f"3.{sys.version_info.minor}": base_python()}
    for minor in range(11, 20):
        versions = sorted(Path.home().glob(f".pyenv/versions/3.{minor}.*/bin/python3"))
        other = shutil.which(f"python3.{minor}", path="/usr/bin:/usr/local/bin") or (
            str(versions[-1]) if versions else None
        )
        if other is not None:
            found.setdefault(f"3.{minor}", other)
    return list(found.values())


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a wheel and apsis.pyz in it."""
    into = tmp_path_factory.mktemp("dist")
    subprocess.run([*BUILD, str(into)], check=True, timeout=100)
    return into


@pytest.fixture(scope="module")
def unpack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where processes of this test unpack it: not in the tester's home."""
    place = tmp_path_factory.mktemp("unpacked")
    with pytest.MonkeyPatch.context() as patch:
        for name in HELPFUL:
            patch.delenv(name, raising=False)
        patch.setenv("APSIS_UNPACK", str(place))
        yield place


@pytest.fixture
def pyz(dist: Path, unpack: Path) -> Path:
    return dist / "apsis.pyz"


def run(*argv: object, **environ: str) -> subprocess.CompletedProcess[str]:
    """In a working directory that has nothing of ours. An empty value takes a variable away."""
    env = {name: value for name, value in (os.environ | environ).items() if value}
    return subprocess.run(list(map(str, argv)), capture_output=True, text=True, timeout=100, cwd="/", env=env)


def checked(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 0, done.stderr
    return done.stdout


# -- the file --------------------------------------------------------------------------------------


def test_the_file_has_no_compiled_part_and_nothing_of_the_machine_that_built_it(pyz: Path) -> None:
    with ZipFile(pyz) as archive:
        names = archive.namelist()
        for name in names:
            content = archive.read(name)
            assert not content.startswith(b"\x7fELF") and not name.endswith((".so", ".pyd", ".pyc")), name
            assert str(ROOT).encode() not in content, name
    for needed in (
        "boto3/__init__.py",
        "botocore/data/ecs/",
        "yaml/",
        "apsislib/schema.sql",
        "apsislib/pages/",
    ):
        assert any(name.startswith(f"content/{needed}") for name in names), needed
    assert any("licenses/LICENSE" in name for name in names)  # of others: they go where their code goes


def test_the_same_source_makes_the_same_files(dist: Path, tmp_path: Path) -> None:
    subprocess.run([*BUILD, str(tmp_path)], check=True, timeout=100)
    for path in dist.iterdir():
        assert path.read_bytes() == (tmp_path / path.name).read_bytes(), path.name


def test_an_old_python_is_told_which_one_it_takes() -> None:
    path = ROOT / "packaging" / "pyz" / "__main__.py"
    ast.parse(path.read_text(), feature_version=(3, 4))
    code = f"import sys; sys.version_info = (3, 9, 2); exec(open({str(path)!r}).read())"
    done = run(sys.executable, "-c", code)
    assert done.returncode == 1
    assert done.stderr.startswith("error: apsis.pyz needs Python 3.11 or newer, and this is 3.9; ")


@pytest.mark.parametrize("python", pythons())
def test_any_python_runs_it(pyz: Path, python: str, tmp_path: Path) -> None:
    jobs = ROOT / "jobs.example"
    checked(run(python, pyz, "check-jobs", jobs / "jobs", "--config", jobs / "apsis.yaml"))
    done = run(python, "-c", IMPORT, pyz)
    assert checked(done).count(os.environ["APSIS_UNPACK"]) == 5, done.stdout


def test_a_shell_runs_it_and_a_link_called_apsisctl_is_that_command(pyz: Path, tmp_path: Path) -> None:
    (tmp_path / "apsisctl").symlink_to(pyz)
    (tmp_path / "python3").symlink_to(base_python())
    path = f"{tmp_path}:/usr/bin:/bin"
    assert checked(run(pyz, "--help", PATH=path)).startswith("usage: apsis ")
    assert checked(run(tmp_path / "apsisctl", "--help", PATH=path)).startswith("usage: apsisctl ")


# -- where it unpacks itself -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What unpacks apsis.pyz, and little to unpack: a program that says what it was given."""
    content = {"apsis.py": PROGRAM, **{f"data/{n}": b"x" * 9000 for n in range(200)}}
    return build.write_pyz(content, "0.1.0", tmp_path_factory.mktemp("small") / "apsis.pyz")


def unpacked(place: Path) -> list[Path]:
    return sorted(place.glob("*apsis-*"))


def test_it_unpacks_itself_in_the_home_and_only_once(small: Path, tmp_path: Path) -> None:
    times = []
    for _ in range(2):
        done = run(base_python(), small, "--help", APSIS_UNPACK="", HOME=str(tmp_path))
        assert checked(done) == "['--help']\n"
        (there,) = unpacked(tmp_path / ".cache" / "apsis")
        times.append([path.stat().st_ctime_ns for path in sorted(there.iterdir()) if path.is_file()])
    assert times[0] == times[1]
    assert there.parent.stat().st_mode & 0o777 == 0o700


def test_systemds_directory_comes_before_the_home(small: Path, tmp_path: Path) -> None:
    service = str(tmp_path / "service")
    checked(run(base_python(), small, "--help", APSIS_UNPACK="", HOME=str(tmp_path), CACHE_DIRECTORY=service))
    assert len(unpacked(tmp_path / "service")) == 1 and not (tmp_path / ".cache").exists()


@pytest.mark.parametrize("home", ["/proc/no-such-home", "/dev/null", ""])
def test_without_a_home_it_takes_a_directory_for_temporary_files(
    small: Path, tmp_path: Path, home: str
) -> None:
    cache = "" if home else "/dev/null"
    options = {"APSIS_UNPACK": "", "HOME": home, "XDG_CACHE_HOME": cache, "TMPDIR": str(tmp_path)}
    checked(run(base_python(), small, "--help", **options))
    (there,) = unpacked(tmp_path / f"apsis-{os.getuid()}")
    assert there.parent.stat().st_mode & 0o777 == 0o700


def test_what_others_could_have_put_there_is_not_run(small: Path, tmp_path: Path) -> None:
    place = tmp_path / f"apsis-{os.getuid()}"
    place.mkdir()
    place.chmod(0o777)
    done = run(base_python(), small, "--help", APSIS_UNPACK=str(place))
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "is not a directory that only its owner can write to" in done.stderr
    place.chmod(0o700)
    checked(run(base_python(), small, "--help", APSIS_UNPACK=str(place)))
    (there,) = unpacked(place)
    there.rename(tmp_path / "evil")
    there.symlink_to(tmp_path / "evil")
    assert "error: " in run(base_python(), small, "--help", APSIS_UNPACK=str(place)).stderr


def test_nowhere_to_unpack_is_a_sentence(small: Path) -> None:
    done = run(base_python(), small, "--help", APSIS_UNPACK="/dev/null/x")
    assert done.returncode == 1
    assert "can't unpack itself: /dev/null/x: Not a directory; name a directory" in done.stderr


def test_many_first_starts_at_once_unpack_it_once(small: Path, tmp_path: Path) -> None:
    env = {**os.environ, "APSIS_UNPACK": str(tmp_path)}
    argv = [base_python(), str(small), "x"]
    starts = [subprocess.Popen(argv, env=env, stdout=subprocess.DEVNULL, cwd="/") for _ in range(6)]
    assert [start.wait(100) for start in starts] == [0] * 6
    assert len(unpacked(tmp_path)) == 1


def test_a_start_that_is_killed_while_it_unpacks_does_no_harm(small: Path, tmp_path: Path) -> None:
    env = {**os.environ, "APSIS_UNPACK": str(tmp_path)}
    start = subprocess.Popen(
        [base_python(), str(small), "--help"], env=env, stdout=subprocess.DEVNULL, cwd="/"
    )
    end = time.monotonic() + 60
    while not any(path.name.startswith(".") for path in unpacked(tmp_path)):
        assert time.monotonic() < end and start.poll() is None
    start.kill()
    assert start.wait(60) == -signal.SIGKILL
    (draft,) = unpacked(tmp_path)
    checked(run(base_python(), small, "--help", APSIS_UNPACK=str(tmp_path)))
    assert len(unpacked(tmp_path)) == 2
    assert draft in unpacked(tmp_path)  # it might be another's who is at work; a later version removes it


def test_another_version_removes_what_nobody_uses_any_more(small: Path, tmp_path: Path) -> None:
    for name, age in {"old": MONTH, ".old-x1": MONTH, "used": MONTH, "young": 3600.0}.items():
        directory = tmp_path / (f".apsis-{name[1:]}" if name[0] == "." else f"apsis-{name}")
        directory.mkdir()
        (directory / "file").touch()
        os.utime(directory, (time.time() - age,) * 2)
    in_use = os.open(tmp_path / "apsis-used", os.O_RDONLY)
    fcntl.flock(in_use, fcntl.LOCK_SH)
    checked(run(base_python(), small, "--help", APSIS_UNPACK=str(tmp_path)))
    os.close(in_use)
    left = {path.name for path in unpacked(tmp_path)}
    assert {name for name in left if "0.1.0" not in name} == {"apsis-used", "apsis-young"}


def test_it_has_time_zones_for_hosts_without_any(pyz: Path, tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text(
        "program: {type: no-op}\nschedule: {type: daily, tz: Asia/Kathmandu, daytime: '09:00:00'}\n"
    )
    checked(run(base_python(), pyz, "check-jobs", tmp_path, PYTHONTZPATH="/nowhere"))
    none = subprocess.run(
        [base_python(), str(ROOT / "apsis.py"), "check-jobs", str(tmp_path)],
        env={**os.environ, "PYTHONTZPATH": "/nowhere", "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert none.returncode == 1
    assert (
        "time zone: Asia/Kathmandu (this host has no time zones: install its package tzdata)" in none.stdout
    )


# -- server, agent and client ----------------------------------------------------------------------


@pytest.mark.parametrize("python", pythons()[-1:])
def test_a_server_of_the_one_file_with_its_agent_and_commands(
    pyz: Path, python: str, unpack: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GO", str(tmp_path / "go"))
    monkeypatch.chdir("/")
    mine = tmp_path / "apsis.pyz"
    shutil.copy(pyz, mine)
    directory = tmp_path / "site"
    shutil.copytree(ROOT / "jobs.example", directory, ignore=shutil.ignore_patterns("*.db*"))
    server = Server(directory, {"long": LONG}, program=(python, str(mine)))
    with server.running("--local-agent"):
        assert server.until(server.schedule({"job_id": "hello"}), *ENDS)["state"] == "success"
        made = json.loads(checked(server.command("schedule", "now", "hello", "--wait", "--format", "json")))
        assert checked(server.command("output", made["run_id"])) == "Hello, world!\n"
        assert "hello" in checked(server.command("jobs"))

        shows = {"program": {"type": "procstar-shell", "command": "env"}}
        shown = server.schedule({"job": shows})
        server.until(shown, *ENDS)
        assert b"PYTHONPATH" not in server.output(shown)  # a program's Python has packages of its own

        agent = json.loads((directory / "apsis.db.agent.json").read_text())["pid"]
        assert server.process is not None
        for pid in (agent, server.process.pid):
            assert str(unpack) in "".join(
                os.readlink(link) for link in Path(f"/proc/{pid}/fd").iterdir() if link.exists()
            ), "holds no lock"

        # As an upgrade does: another file takes its place, and the server goes on with what it has.
        mine.unlink()
        server.write("later", "program: {type: procstar, argv: [/bin/echo, later]}\n")
        requests.post(f"{server.url[:-3]}/control/reload_jobs", timeout=60).raise_for_status()
        assert server.until(server.schedule({"job_id": "later"}), *ENDS)["state"] == "success"
        shutil.copy(pyz, mine)

        long = server.schedule({"job_id": "long"})
        server.until(long, "running")
        requests.post(f"{server.url[:-3]}/control/shut_down?restart", timeout=60).raise_for_status()
        end = time.monotonic() + 60
        while server.log().count("serving http") < 2:
            assert time.monotonic() < end, server.log()
            time.sleep(0.05)
        server.await_running()
        assert server.run(long)["state"] == "running"
        server.kill()
        server.start("--local-agent")
        (tmp_path / "go").touch()
        assert server.until(long, *ENDS)["state"] == "success"
        assert server.output(long) == b"begun\n"
        assert json.loads((directory / "apsis.db.agent.json").read_text())["pid"] == agent


def test_an_agent_of_the_one_file_serves_a_server_of_the_checkout(
    pyz: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = "program: {type: procstar, group_id: far, argv: [/bin/echo, far away]}\n"
    door = "{host: 127.0.0.1, port: 0, plain: true, access_token: t}"
    config = f"procstar: {{agent: {{enable: true, server: {door}}}}}\n"
    (tmp_path / "apsis.yaml").write_text(f"job_dir: jobs\ndatabase: {{path: apsis.db}}\n{config}")
    server = Server(tmp_path, {"far": job})
    with server.running():
        (port,) = re.findall(r"agents.* address=127\.0\.0\.1 port=(\d+)", server.log())
        argv = [base_python(), str(pyz), "agent", "--agent", "--plain", "--agent-host", "127.0.0.1"]
        argv += ["--agent-port", port, "--group-id", "far"]
        agent = subprocess.Popen(argv, env={**os.environ, "PROCSTAR_AGENT_TOKEN": "t"}, cwd="/")
        try:
            run_id = server.schedule({"job_id": "far"})
            assert server.until(run_id, *ENDS)["state"] == "success"
            assert server.output(run_id) == b"far away\n"
        finally:
            agent.send_signal(signal.SIGQUIT)
            assert agent.wait(60) == 0


# -- the wheel -------------------------------------------------------------------------------------


def test_the_wheel_runs_in_a_fresh_environment(
    dist: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in HELPFUL:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir("/")
    venv = tmp_path / "venv"
    subprocess.run([base_python(), "-m", "venv", "--without-pip", str(venv)], check=True, timeout=100)
    (packages,) = venv.glob("lib/*/site-packages")
    # What it needs is that of the tests, not fetched.
    for package in build.needed(build.PROJECT):
        for name in {file.parts[0] for file in package.files or () if ".." not in file.parts}:
            if not (packages / name).exists():
                (packages / name).symlink_to(package.locate_file(name))
    pip = [sys.executable, "-m", "pip", "--python", str(venv), "--quiet", "--disable-pip-version-check"]
    (wheel,) = dist.glob("*.whl")
    subprocess.run([*pip, "install", "--no-index", str(wheel)], check=True, timeout=100)

    python = str(venv / "bin" / "python")
    for module in ("apsis", "agent_server", "programs", "apsislib"):
        assert checked(run(python, "-c", f"import {module}; print({module}.__file__)")).startswith(str(venv))
    job = "program: {type: procstar, argv: [/bin/echo, here]}\n"
    server = Server(tmp_path / "site", {"echo": job}, program=(str(venv / "bin" / "apsis"),))
    with server.running():
        assert server.until(server.schedule({"job_id": "echo"}), *ENDS)["state"] == "success"
        server.write("later", job)
        requests.post(f"{server.url[:-3]}/control/reload_jobs", timeout=60).raise_for_status()
        assert "later" in checked(run(venv / "bin" / "apsisctl", "--port", server.port, "jobs"))
        page = requests.get(f"http://127.0.0.1:{server.port}/", timeout=60)
        assert page.status_code == 200 and "<html" in page.text
