"""Crontabs as job files: what they say, when they fire, what they print, and what is left."""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path

import pytest
from croniter import croniter
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from server import ENDS, PROGRAM, Server, environment
from test_cron import crons

from apsislib import jobs, templates, yamlio
from apsislib.config import load as load_config
from apsislib.moving import jobfiles
from apsislib.moving.crontab import Crontab, read
from apsislib.times import parse_time
from programs import Table

SYSTEM = """\
# /etc/crontab: what this machine does
SHELL=/bin/sh
PATH=/usr/local/bin:/usr/bin:/bin
MAILTO="ops@example.com, root"

# Example of job definition:
# .---------------- minute (0 - 59)
# |  .------------- hour (0 - 23)
# *  *  *  *  * user-name command to be executed
17 *\t* * *\troot    cd / && run-parts --report /etc/cron.hourly

# The nightly report,
# for the traders.
CRON_TZ=Europe/London
30 2 * * mon-fri  app  /opt/report/bin/make_report.sh --date $(date +\\%F) > /tmp/x.log 2>&1
*/5 9-17 * * *  app  nice -n 10 flock -n /run/x.lock /opt/poll

-@Weekly root echo "a\\tb"
@daily root echo "a\\tb"
@reboot root /usr/sbin/thing
#0 5 * * * root /old/thing
0 0 31 2 * root never
5 4~7 * * * root maybe
LOGNAME=me
RANDOM_DELAY=5
not an entry
0 0 * * * root
0 0 * * * ?? x

# Nothing follows.
"""


def command(*words: str, stdin: str = "", check: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, PROGRAM, "import-crontab", *words],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=120,
        env=environment(),
    )
    assert done.returncode == check, done.stderr
    assert "Traceback" not in done.stderr
    return done


def test_a_system_crontab_becomes_job_files_and_what_is_left_is_named(tmp_path: Path) -> None:
    (tmp_path / "crontab").write_text(SYSTEM)
    done = command(str(tmp_path / "crontab"), "--system", "--tz", "UTC", "-o", str(tmp_path / "jobs"))
    files = sorted(path.name for path in (tmp_path / "jobs").iterdir())
    assert files == ["cron-hourly.yaml", "echo.yaml", "make_report.yaml", "poll.yaml"]
    report = yamlio.load((tmp_path / "jobs" / "make_report.yaml").read_bytes(), "")
    assert report == {
        "metadata": {"description": "The nightly report,\nfor the traders."},
        "schedule": {"type": "cron", "cron": "30 2 * * mon-fri", "tz": "Europe/London"},
        "program": {
            "type": "procstar-shell",
            "command": "export PATH=/usr/local/bin:/usr/bin:/bin\ncd\n"
            "/opt/report/bin/make_report.sh --date $(date +%F) > /tmp/x.log 2>&1\n",
            "sudo_user": "app",
        },
    }
    text = (tmp_path / "jobs" / "make_report.yaml").read_text()
    assert text.startswith(f"# {tmp_path}/crontab:15: 30 2 * * mon-fri  app  /opt/report")
    poll = yamlio.load((tmp_path / "jobs" / "poll.yaml").read_bytes(), "")
    assert poll["metadata"] == report["metadata"], "the comment is of both lines below it"
    # dash's echo makes a tab of it, and bash's does not: it keeps the shell that it had.
    echo = yamlio.load((tmp_path / "jobs" / "echo.yaml").read_bytes(), "")["program"]
    assert echo["argv"][:2] == ["/bin/sh", "-c"] and echo["argv"][2].endswith('echo "a\\tb"')
    left = [line.removeprefix(f"{tmp_path}/crontab:") for line in done.stderr.splitlines()]
    for line, part in {
        1: "a comment with no entry below it: # /etc/crontab: what this machine does",
        10: "no mails: give --config with smtp in the server's file, or add e-mail actions",
        18: "this is no line of a crontab: -@Weekly",
        20: "nothing in Apsis happens at boot: make it a systemd unit",
        21: "commented out: it is left out: #0 5 * * * root /old/thing",
        22: "never fires",
        23: "random times (~) have no equivalent",
        24: "cron sets LOGNAME itself",
        25: "there is no such thing in Apsis: RANDOM_DELAY=5",
        26: "this is no line of a crontab: not an entry",
        27: "there is no user before the command",
        28: "there is no user before the command",
        30: "a comment with no entry below it: # Nothing follows.",
    }.items():
        said = left.pop(0)
        assert said.startswith(f"{line}: ") and part in said, (line, said)
    assert left == [f"4 job files written into {tmp_path / 'jobs'}"]
    checked = subprocess.run(
        [sys.executable, PROGRAM, "check-jobs", str(tmp_path / "jobs")], capture_output=True, text=True
    )
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")


def test_files_are_not_overwritten_unless_told(tmp_path: Path) -> None:
    to = str(tmp_path / "jobs")
    first = "0 5 * * * /bin/one\n1 5 * * * /bin/two\n"
    command("-", "--tz", "UTC", "-o", to, stdin=first)
    assert "2 job files written" in command("-", "--tz", "UTC", "-o", to, stdin=first).stderr, "as they are"
    (tmp_path / "jobs" / "two.yaml").write_text("program: {type: no-op}\n")
    refused = command("-", "--tz", "UTC", "-o", to, stdin=first.replace("0 5", "9 9"), check=1)
    assert "two.yaml" in refused.stderr and "--force" in refused.stderr
    assert "0 5 * * *" in (tmp_path / "jobs" / "one.yaml").read_text(), "some were written"
    dry = command("-", "--tz", "UTC", "-o", to, "--dry-run", stdin=first)
    assert "2 job files would be written" in dry.stderr and "--- # one.yaml" in dry.stdout
    assert "no-op" in (tmp_path / "jobs" / "two.yaml").read_text()
    command("-", "--tz", "UTC", "-o", to, "--force", stdin=first)
    assert "/bin/two" in (tmp_path / "jobs" / "two.yaml").read_text()
    assert sorted(path.name for path in (tmp_path / "jobs").iterdir()) == ["one.yaml", "two.yaml"]


def test_without_a_directory_they_are_printed() -> None:
    done = command("-", "--tz", "Europe/Rome", "--group", "etl", stdin="@hourly /bin/x\n@hourly /bin/x\n")
    assert done.stdout.startswith("--- # x.yaml\n# crontab:1: @hourly /bin/x\n")
    assert "--- # x-2.yaml\n" in done.stdout and done.stdout.count("tz: Europe/Rome\n") == 2
    assert done.stdout.count("group_id: etl") == 2
    assert done.stderr.splitlines()[-1] == "2 job files would be written with -o DIR"
    assert "without MAILTO, cron mails all output" in done.stderr


def test_users_are_told_from_commands() -> None:
    """A file whose every entry has a user of this machine where /etc/crontab has one."""
    system = command("-", stdin="0 5 * * * root /bin/x\n").stdout
    assert (
        "sudo_user: root" in system
        and "root /bin/x\n" not in system.replace("# crontab:1:", "").split("\n", 2)[2]
    )
    assert "sudo_user" not in command("-", stdin="0 5 * * * root /bin/x\n1 5 * * * /bin/y\n").stdout
    assert "sudo_user" not in command("-", "--no-system", stdin="0 5 * * * root /bin/x\n").stdout
    assert "sudo_user" not in command("-", "--agent-user", "root", stdin="0 5 * * * root /bin/x\n").stdout


def test_mailto_becomes_an_action_where_there_is_a_mail_server(tmp_path: Path) -> None:
    (tmp_path / "apsis.yaml").write_text("smtp: {host: mail.example.com}\n")
    text = "MAILTO=a@example.com,b@example.com\n0 5 * * * /bin/x\nMAILTO=\n0 6 * * * /bin/y\n"
    more = ["--config", str(tmp_path / "apsis.yaml"), "--mail-from", "apsis@example.com"]
    done = command("-", "--tz", "UTC", *more, "-o", str(tmp_path / "jobs"), stdin=text)
    job = yamlio.load((tmp_path / "jobs" / "x.yaml").read_bytes(), "")
    assert job["action"] == {
        "type": "email",
        "to": ["a@example.com", "b@example.com"],
        "from": "apsis@example.com",
        "if": {"states": ["failure", "error"]},
    }
    assert "failures are mailed, where cron mails all output" in done.stderr
    assert "action" not in yamlio.load((tmp_path / "jobs" / "y.yaml").read_bytes(), "")


@pytest.mark.parametrize(
    "words, stdin, said",
    [
        (["/nonexistent"], "", "No such file"),
        (["-", "--tz", "Mars/Base"], "", "--tz: unknown time zone: Mars/Base"),
        (["-", "--config", "/nonexistent"], "", "can't be read"),
    ],
)
def test_mistakes_are_said(words: list[str], stdin: str, said: str) -> None:
    assert said in command(*words, stdin=stdin, check=1).stderr


def test_bytes_that_are_no_text_are_said(tmp_path: Path) -> None:
    (tmp_path / "crontab").write_bytes(b"# fine\n0 5 * * * echo \xff\n")
    assert "crontab:2 is not UTF-8" in command(str(tmp_path / "crontab"), check=1).stderr


@pytest.mark.parametrize(
    "text, name",
    [
        ("/usr/local/bin/backup.sh --full", "backup"),
        ("cd /srv/app && ./bin/rails runner x", "rails"),
        ("test -x /usr/sbin/anacron || { cd / && run-parts --report /etc/cron.daily; }", "cron-daily"),
        ("[ -x /usr/bin/foo ] && /usr/bin/foo -q", "foo"),
        ("PATH=/x FOO='a b' nice -n 19 ionice -c3 /opt/job.py", "job"),
        ("sudo -u bob /bin/do-it", "do-it"),
        ("flock -n /run/lock/x timeout 5m python3 /opt/etl/load_trades.py", "load_trades"),
        ("bash -c 'cd /tmp; /opt/nightly clean'", "nightly"),
        ("python3 -m etl.load", "etl-load"),
        (". /etc/profile; /opt/X", "x"),
        ("$HOME/bin/thing", "thing"),
        ("sh", "sh"),
        ("perl -e 'sleep int(rand(9))' && certbot -q renew", "certbot"),
        ("sleep 20; /opt/late", "late"),
        ("'unbalanced", "unbalanced"),
        ("!!!", "job"),
        ("../..", "job"),
        ("/x/" + "y" * 200, "y" * 40),
    ],
)
def test_files_are_called_after_what_they_run(text: str, name: str) -> None:
    assert jobfiles.name_of(text) == name


# -- when they fire, and what they do ------------------------------------------------------------------


def kinds() -> jobs.Kinds:
    return jobs.Kinds(Table(load_config(None)).parse)


COMMANDS = st.text(st.characters(exclude_categories=("C", "Z"), include_characters=" %\\{}#\"'"), min_size=1)


@settings(max_examples=60)
@given(crons, COMMANDS, st.datetimes(datetime(2000, 1, 1), datetime(2040, 1, 1)), st.booleans())
def test_a_job_file_fires_when_croniter_says(text: str, said: str, start: datetime, system: bool) -> None:
    _, _, days, _, weekdays = text.split()
    # croniter takes a field that names every value for a star; to crontab only what begins with one is.
    found = read(f"# why\n{text} {'root ' if system else ''}x{said}", system)
    assert found.left == []
    (entry,) = found.entries
    written = jobfiles.JobFile("x", entry, jobfiles.job_of(entry, "UTC", None, None), "crontab").text()
    job = jobs.parse_job(yamlio.load(written, "x.yaml"), "x", kinds())
    assert job.metadata["description"] == "why"
    (schedule,) = job.schedules
    assume(days.startswith("*") or len(schedule.cron.monthdays) < 31)
    assume(weekdays.startswith("*") or len(schedule.cron.weekdays) < 7)
    theirs = croniter(text, start.replace(tzinfo=UTC), ret_type=datetime, implement_cron_bug=True)
    after = parse_time(f"{start:%Y-%m-%dT%H:%M:%S}Z") + 1
    ours = [occurrence.time for occurrence in islice(schedule.after(after), 3)]
    assert ours == [theirs.get_next().timestamp() for _ in range(3)]


MARKS = st.sampled_from(["{{", "}}", "{%", "%}", "{#", "#}", "endraw", " - ", "'"])


@given(st.lists(MARKS | st.text(st.characters(exclude_categories=("Cs",)), max_size=3)).map("".join))
def test_a_command_is_told_from_a_template(text: str) -> None:
    text = text.replace("\r", "")
    assert templates.expand(jobfiles.as_template(text + "."), {}) == text + "."


@given(st.text(), st.booleans())
def test_any_text_is_read(text: str, system: bool) -> None:
    found = read(text, system)
    assert isinstance(found, Crontab)
    for entry in found.entries:
        jobfiles.name_of(entry.command)
        jobfiles.job_of(entry, "UTC", None, None)


PRINTING = (
    r"""echo 'it is {{ fine }} and {\% good \%}'; X=abc; echo ${#X}""",
    r"""echo "50\% of $X"; printf '\%s-' a b""",
    r"""cat%two lines,%one of them {{ last }}""",
    r"""cat; echo done # a comment%input%""",
    r"""tr a-z A-Z | sort%b%a%END%c""",
    r"""echo "a\tb" 'c\nd'""",
    r"""pwd; echo "$HOME" | wc -l""",
    r"""false || { echo "$PATH" >&2; exit 3; }""",
)


def test_jobs_print_what_cron_would_have_had_them_print(tmp_path: Path) -> None:
    lines = [f"0 5 1 1 * {text}" for text in PRINTING]
    crontab = "\n".join(["PATH = '/usr/bin:/bin'", 'X="a  b"', *lines, "SHELL=/usr/bin/env", "@yearly -c"])
    server = Server(tmp_path)
    (tmp_path / "crontab").write_text(crontab)
    command(str(tmp_path / "crontab"), "--no-system", "--tz", "UTC", "-o", str(tmp_path / "jobs"))
    entries = read(crontab, False).entries[:-1]
    names = jobfiles.named(jobfiles.name_of(entry.command) for entry in entries)
    with server.running():
        for entry, name in zip(entries, names, strict=True):
            run_id = server.schedule({"job_id": name})
            ended = server.until(run_id, *ENDS)
            cron = subprocess.run(
                ["/bin/sh", "-c", entry.command],
                input=(entry.stdin or "").encode(),
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                cwd=Path.home(),
                env={"PATH": "/usr/bin:/bin", "X": "a  b", "HOME": str(Path.home())},
            )
            assert server.output(run_id) == cron.stdout, entry.text
            assert ended["state"] == ("failure" if cron.returncode else "success")
        assert len(entries) == len(PRINTING)
