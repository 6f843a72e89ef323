"""Commands on the database file, beside a server and without one."""

from __future__ import annotations

import json
import os
import pty
import signal
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest
from server import ENDS, Server
from storing import a_run, opened, put

from apsislib.runs import Save

JOBS = {
    "job": "params: [n]\nprogram: {type: procstar-shell, command: 'echo number {{ n }}'}\n",
    "nothing": "program: {type: no-op}\n",
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that has been ended; it ran r1 to r4."""
    directory = tmp_path_factory.mktemp("offline")
    server = Server(directory, JOBS)
    with server.running():
        for n in range(4):
            run_id = server.schedule({"job_id": "job", "args": {"n": str(n)}})
            assert server.until(run_id, *ENDS)["state"] == "success"
            assert run_id == f"r{n + 1}"
            server.until_printed(run_id, b"number %d\n" % n)
        beside = server.command("backup", "-d", str(directory / "apsis.db"), str(directory / "backup.db"))
        assert beside.returncode == 0, beside.stderr
        in_use = server.command("vacuum", "--config", str(directory / "apsis.yaml"))
        assert in_use.returncode == 1 and "another" in in_use.stderr, in_use.stderr
        server.end()
        yield server
        server.start()


def test_a_backup_made_beside_the_server_is_whole(server: Server) -> None:
    copy = str(server.directory / "backup.db")
    assert server.command("check-db", "-d", copy).stdout == f"{copy}: no damage found\n"
    again = server.command("backup", "-d", copy, copy)
    assert (again.returncode, "exists" in again.stderr) == (1, True)


def test_damage_is_found_and_said(server: Server, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.db"
    data = bytearray((server.directory / "backup.db").read_bytes())
    data[4096 * 2 : 4096 * 5] = bytes(4096 * 3)
    damaged.write_bytes(data)
    found = server.command("check-db", "-d", str(damaged))
    assert found.returncode == 1 and str(damaged) in found.stdout


def spoil(path: Path, *names: str) -> None:
    """Make the last page with rows of each table or index unreadable."""
    with closing(sqlite3.connect(path)) as db:
        sql = "SELECT max(pageno) FROM dbstat WHERE name = ? AND pagetype = 'leaf'"
        pages = [db.execute(sql, (name,)).fetchone()[0] for name in names]
    data = bytearray(path.read_bytes())
    for page in pages:
        data[(page - 1) * 4096 : page * 4096] = b"\xff" * 4096
    path.write_bytes(data)


def test_a_backup_of_what_is_damaged_is_not_taken_for_a_good_one(server: Server, tmp_path: Path) -> None:
    database, copy = tmp_path / "apsis.db", tmp_path / "copy.db"
    database.write_bytes((server.directory / "backup.db").read_bytes())
    spoil(database, "log")
    done = server.command("backup", "-d", str(database), str(copy))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"error: {copy} is the copy of a database that is damaged ("), done.stderr
    assert copy.exists()


def test_damage_of_the_database_is_not_said_of_the_archive(server: Server, tmp_path: Path) -> None:
    database, archive = tmp_path / "apsis.db", tmp_path / "old.db"
    database.write_bytes((server.directory / "backup.db").read_bytes())
    spoil(database, "log")
    moved = server.command("archive", "-d", str(database), "--age", "0", "--path", str(archive))
    assert (moved.returncode, moved.stdout) == (1, f"0 runs moved to {archive}\n")
    assert "4 runs stay (r1, r2, r3, r4): it can't be read: " in moved.stderr, moved.stderr


def test_old_runs_are_archived_purged_and_looked_up(server: Server, tmp_path: Path) -> None:
    database, archive = tmp_path / "apsis.db", str(tmp_path / "old.db")
    database.write_bytes((server.directory / "backup.db").read_bytes())
    here = ("-d", str(database))
    none = server.command("archive", *here, "--age", "1d", "--path", archive)
    assert (none.returncode, none.stdout) == (0, f"0 runs moved to {archive}\n"), none.stderr
    moved = server.command("archive", *here, "--age", "0", "--path", archive, "--count", "2")
    assert (moved.returncode, moved.stdout) == (0, f"2 runs moved to {archive}\n"), moved.stderr
    listed = server.command("archive", "query", archive)
    assert [line.split()[0] for line in listed.stdout.splitlines()] == ["r1", "r2"]
    assert all("success" in line and "job(n=" in line for line in listed.stdout.splitlines())
    one = server.command("archive", "query", archive, "--run", "r2", "--format", "json")
    shown = json.loads(one.stdout)
    assert (shown["run_id"], shown["args"], shown["state"]) == ("r2", {"n": "1"}, "success")
    assert shown["log"][-1]["message"] == "success"
    assert server.command("archive", "query", archive, "--run", "r2", "--output").stdout == "number 1\n"
    deleted = server.command("purge", *here, "--age", "0")
    assert (deleted.returncode, deleted.stdout) == (0, "2 runs deleted\n"), deleted.stderr
    smaller = server.command("vacuum", *here)
    assert smaller.returncode == 0 and " bytes after\n" in smaller.stdout, smaller.stderr


def test_what_is_damaged_in_an_archive_is_said_and_the_rest_is_shown(server: Server, tmp_path: Path) -> None:
    database, archive = tmp_path / "apsis.db", tmp_path / "old.db"
    database.write_bytes((server.directory / "backup.db").read_bytes())
    moved = server.command("archive", "-d", str(database), "--age", "0", "--path", str(archive))
    assert moved.returncode == 0, moved.stderr
    with closing(sqlite3.connect(archive)) as db, db:
        db.execute("UPDATE runs SET args = '{' WHERE run_id = 'r2'")
        db.execute("UPDATE runs SET timestamp = 'soon' WHERE run_id = 'r3'")
    listed = server.command("archive", "query", str(archive))
    assert [line.split()[0] for line in listed.stdout.splitlines()] == ["r1", "r4"]
    assert [line.partition(": its")[0] for line in listed.stderr.splitlines()] == [
        f"{archive}: r2",
        f"{archive}: r3",
    ]
    assert listed.returncode == 1 and "its row can't be read" in listed.stderr
    data = bytearray(archive.read_bytes())
    data[4096:] = b"\xff" * (len(data) - 4096)
    archive.write_bytes(data)
    for more in ((), ("-r", "r1", "--output")):
        torn = server.command("archive", "query", str(archive), *more)
        assert torn.returncode == 1 and torn.stderr.startswith(f"error: archive {archive}: "), torn.stderr


def test_a_run_that_can_only_be_repaired_is_said_to_stay(server: Server, tmp_path: Path) -> None:
    database = tmp_path / "apsis.db"
    database.write_bytes((server.directory / "backup.db").read_bytes())
    with closing(sqlite3.connect(database)) as db, db:
        db.execute("UPDATE runs SET times = '{' WHERE number = 2")
    done = server.command("purge", "-d", str(database), "--age", "0")
    assert (done.returncode, done.stdout) == (1, "3 runs deleted\n")
    assert "1 runs stay (r2): its row can't be read\n" in done.stderr


def test_a_disk_that_refuses_ends_a_command_with_a_sentence(server: Server, tmp_path: Path) -> None:
    database = tmp_path / "apsis.db"
    database.write_bytes((server.directory / "backup.db").read_bytes())
    said = subprocess.run(
        ["/bin/sh", "-c", 'ulimit -f 16; exec "$@"', "sh", *server.argv("purge", "-d", str(database))]
        + ["--age", "0"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert said.returncode == 1 and said.stdout == "", said.stderr
    assert "error: not on disk yet: " in said.stderr or "error: database " in said.stderr, said.stderr
    assert server.command("purge", "-d", str(database), "--age", "0").stdout == "4 runs deleted\n"


def test_ctrl_c_ends_a_purge_after_its_step_and_what_was_done_is_told(tmp_path: Path) -> None:
    database = tmp_path / "apsis.db"
    count = 20_000
    with opened(database) as (store, _):
        put(store, *(Save(a_run(number)) for number in range(1, count + 1)))
    argv = [*Server.program, "purge", "-d", str(database), "--age", "0"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as purge:
        with closing(sqlite3.connect(database, timeout=60)) as db:
            while db.execute("SELECT count(*) FROM runs").fetchone()[0] == count:
                assert purge.poll() is None
        purge.send_signal(signal.SIGINT)
        printed, said = purge.communicate(timeout=60)
        left = count - int(printed.split()[0].replace(",", ""))
    assert purge.returncode == 130 and printed.endswith("runs deleted\n")
    assert 0 < left < count and said == f"interrupted: {left:,} runs of that age remain\n"
    with opened(database) as (store, _), store.read() as reader:
        assert reader.count() == left


def test_on_a_terminal_there_is_a_progress_bar(server: Server, tmp_path: Path) -> None:
    database = tmp_path / "apsis.db"
    database.write_bytes((server.directory / "backup.db").read_bytes())
    for words, shown in (
        (("archive", "--age", "0", "--path", str(tmp_path / "old.db")), "[" + 30 * "#" + "] 4 of 4 runs"),
        (("vacuum",), "[" + 30 * "#" + "] "),
    ):
        ours, theirs = pty.openpty()
        argv = server.argv(words[0], "-d", str(database), *words[1:])
        with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=theirs) as command:
            os.close(theirs)
            said = b""
            with suppress(OSError):  # EIO: nobody has the other end
                while piece := os.read(ours, 65536):
                    said += piece
            assert command.wait(60) == 0
        os.close(ours)
        assert shown in said.decode(), said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ("vacuum", "-d", "/no/such.db"),
            "there is no database /no/such.db; say which with --database or --config",
        ),
        (("archive", "--age", "1d"), "archive: give --age and --path, or: archive query ARCHIVE"),
        (("purge", "-d", "README.md", "--age", "soon"), "--age: "),
        (("archive", "query", "/no/such.db"), "/no/such.db"),
        (("archive", "query", "/no/such.db", "--output"), "archive query: --output wants --run RUN_ID"),
    ],
)
def test_a_mistake_is_a_sentence(server: Server, words: tuple[str, ...], said: str) -> None:
    failed = server.command(*words)
    assert failed.returncode == 1 and failed.stdout == ""
    assert failed.stderr.startswith("error: ") and said in failed.stderr and "Traceback" not in failed.stderr
