"""What people get wrong, on a whole server: an error that names it, and everybody else is served."""

from __future__ import annotations

import resource
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from server import ENDS, Server, environment
from test_faults import limit_files, until_made, until_refused

TOO_MUCH = "the template loops or repeats too much, and was stopped"
LOOP = "{% for i in range(9999) %}{% for j in range(9999) %}{% endfor %}{% endfor %}"
ECHO = "params: [x]\nprogram: {type: procstar, argv: [/bin/echo, '{{ x }}']}\n"

JOBS = {
    "echo": ECHO,
    "nothing": "program: {type: no-op}\n",
    "loops": f"params: [x]\nprogram: {{type: procstar, argv: [/bin/echo, '{LOOP}']}}\n",
    "fails": "params: [x]\nprogram: {type: procstar, argv: [/bin/echo, '{{ Date(x) + 1 }}']}\n",
    "follows": (
        "program: {type: no-op}\n"
        f"action: {{type: schedule, job_id: echo, args: {{x: '{LOOP}'}}, if: {{states: success}}}}\n"
    ),
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("server"), JOBS).running() as server:
        yield server


def post(server: Server, body: Any) -> requests.Response:
    return requests.post(f"{server.url}/runs", json=body, timeout=60)


def serves(server: Server) -> None:
    run_id = server.schedule({"job_id": "echo", "args": {"x": "here"}})
    assert server.until(run_id, *ENDS)["state"] == "success", server.messages(run_id)
    assert server.output(run_id) == b"here\n"


@pytest.mark.parametrize(
    "body",
    [
        {"job_id": "echo", "args": {"x": "a\ud800b"}},
        {"job_id": "echo", "args": {"x\udfff": "b"}},
        {"job": {"program": {"type": "procstar", "argv": ["/bin/echo", "\udc00"]}}},
    ],
    ids=["value", "name", "ad hoc"],
)
def test_a_lone_surrogate_is_refused_by_name(server: Server, body: Any) -> None:
    answer = post(server, body)
    assert answer.status_code == 400 and "surrogate" in answer.json()["error"], answer.text
    serves(server)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"job_id": "loops", "args": {"x": ""}}, TOO_MUCH),
        ({"job": {"program": {"type": "procstar", "argv": ["/bin/echo", LOOP]}}}, TOO_MUCH),
        ({"job_id": "fails", "args": {"x": "someday"}}, "someday"),
        ({"job": {"program": {"type": "procstar-shell", "command": "echo {{ nobody }}"}}}, "nobody"),
    ],
    ids=["loops", "loops, ad hoc", "fails", "fails, ad hoc"],
)
def test_a_template_that_loops_or_fails_is_an_error_of_its_run_alone(
    server: Server, body: Any, said: str
) -> None:
    answers: list[requests.Response] = []
    asks = threading.Thread(target=lambda: answers.append(post(server, body)))
    asks.start()
    serves(server)
    asks.join()
    (answer,) = answers
    if answer.status_code == 200:
        (run_id,) = answer.json()["runs"]
        assert server.run(run_id)["state"] == "error"
        told = "\n".join(server.messages(run_id))
    else:
        assert answer.status_code == 400
        told = answer.json()["error"]
    assert said in told
    serves(server)


def test_an_action_whose_template_loops_says_so_in_the_log_of_its_run(server: Server) -> None:
    run_id = server.schedule({"job_id": "follows"})
    assert server.until(run_id, *ENDS)["state"] == "success"
    serves(server)
    end = time.monotonic() + 60
    while not any(TOO_MUCH in line for line in server.messages(run_id)):
        assert time.monotonic() < end, server.messages(run_id)
        serves(server)  # which takes a while: actions have threads of their own
    assert server.run(run_id)["state"] == "success"


def test_a_server_whose_port_is_in_use_ends_with_a_sentence(server: Server, tmp_path: Path) -> None:
    other = Server(tmp_path, JOBS)
    ended = subprocess.run(
        [*other.program, "serve", "--config", str(tmp_path / "apsis.yaml"), "--port", str(server.port)],
        capture_output=True,
        text=True,
        timeout=120,
        env=environment(),
    )
    assert ended.returncode == 1
    assert "Traceback" not in ended.stderr
    assert f"can't listen on 127.0.0.1 port {server.port}: Address already in use" in ended.stderr
    assert "choose another with --host and --port" in ended.stderr
    serves(server)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path | None]:
    """A file system of 8 MiB; None where mounting is refused."""
    directory = tmp_path / "disk"
    directory.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(directory)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        yield None
        return
    try:
        yield directory
    finally:
        subprocess.run(["umount", str(directory)], check=True)


def test_a_disk_that_fills_brakes_the_server_and_room_releases_it(
    small_disk: Path | None, tmp_path: Path, record_property: Any
) -> None:
    """The disk is a small one of its own or, where mounting is refused, a limit on the size of files."""
    record_property("disk", "RLIMIT_FSIZE" if small_disk is None else "tmpfs")
    directory = tmp_path / "server"
    directory.mkdir()
    database = (directory if small_disk is None else small_disk) / "apsis.db"
    (directory / "apsis.yaml").write_text(
        f"job_dir: jobs\ndatabase: {{path: {database}}}\nruns: {{retention: off}}\n"
    )
    with Server(directory, {"nothing": JOBS["nothing"]}).running() as server:
        first = server.schedule({"job_id": "nothing"})
        if small_disk is None:
            limit_files(server, 64 * 1024)
        else:
            fill(small_disk / "ballast")
        made, why = until_refused(server)
        assert "can't be written" in why or "not on disk" in why
        (reason, *_) = requests.get(f"{server.url}/health", timeout=60).json()["reasons"]
        assert reason.startswith("the database can't be written: ")
        assert server.run(first)["state"] == "success"
        if small_disk is None:
            limit_files(server, resource.RLIM_INFINITY)
        else:
            (small_disk / "ballast").unlink()
        after = until_made(server)
        assert server.get("/health") == {"reasons": []}
        for run_id in (first, *made, after):
            assert server.until(run_id, *ENDS)["state"] == "success"


def fill(ballast: Path) -> None:
    """Until nothing more goes onto its disk."""
    with open(ballast, "wb", buffering=0) as file:
        try:
            while file.write(bytes(4096)):
                pass
        except OSError:
            pass
