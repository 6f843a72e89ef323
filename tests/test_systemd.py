"""systemd's notifications, received on real sockets from a real server."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
from server import Server

from apsislib.systemd import Notifier

WAIT = 60.0


@pytest.fixture(params=["path", "abstract"])
def door(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[socket.socket, str]]:
    """What systemd listens on, and how it calls it."""
    name = str(tmp_path / "notify") if request.param == "path" else f"@apsis-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(name.replace("@", "\0", 1))
        listener.settimeout(WAIT)
        yield listener, name


def heard(listener: socket.socket, word: str) -> list[str]:
    """The lines of the next notification that begins with `word`."""
    while True:
        lines = listener.recv(4096).decode().split("\n")
        if lines[0] == word:
            return lines


def test_a_server_says_when_it_is_ready_that_it_lives_and_that_it_ends(
    door: tuple[socket.socket, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listener, name = door
    monkeypatch.setenv("NOTIFY_SOCKET", name)
    monkeypatch.setenv("WATCHDOG_USEC", "200000")
    shows = "program: {type: procstar-shell, command: 'env | grep -c NOTIFY || true'}\n"
    server = Server(tmp_path, {"shows": shows})
    with server.running():
        assert heard(listener, "READY=1") == ["READY=1", "STATUS=0 running, 0 waiting"]
        assert heard(listener, "WATCHDOG=1")[1].startswith("STATUS=0 running")
        run_id = server.schedule({"job_id": "shows"})
        server.until(run_id, "success")
        assert server.output(run_id) == b"0\n"  # programs must not speak for the server
        assert server.process is not None
        server.process.send_signal(signal.SIGHUP)
        assert heard(listener, "RELOADING=1")[1].startswith("MONOTONIC_USEC=")
        heard(listener, "READY=1")
        requests.post(f"{server.url[:-3]}/control/shut_down?restart", timeout=30)
        heard(listener, "RELOADING=1")
        heard(listener, "READY=1")
        heard(listener, "WATCHDOG=1")
    heard(listener, "STOPPING=1")


def test_without_systemd_nothing_is_said() -> None:
    environ = {"PATH": "/bin"}
    notifier = Notifier(environ)
    notifier.send("READY=1")
    assert notifier.interval is None
    assert environ == {"PATH": "/bin"}


def test_the_variables_are_taken_and_given_back() -> None:
    told = {
        "NOTIFY_SOCKET": "/run/systemd/notify",
        "WATCHDOG_USEC": "30000000",
        "WATCHDOG_PID": str(os.getpid()),
    }
    environ = {**told, "PATH": "/bin"}
    notifier = Notifier(environ)
    assert environ == {"PATH": "/bin"}
    assert notifier.interval == 15.0
    notifier.give_back(environ)
    assert environ == {**told, "PATH": "/bin"}


def test_a_watchdog_of_another_process_is_not_ours() -> None:
    assert Notifier({"NOTIFY_SOCKET": "/x", "WATCHDOG_USEC": "100", "WATCHDOG_PID": "1"}).interval is None


def test_a_socket_that_is_gone_ends_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    Notifier({"NOTIFY_SOCKET": str(tmp_path / "gone")}).send("READY=1")
    assert "systemd could not be told READY=1" in caplog.text
