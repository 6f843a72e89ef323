"""The server's file: every key, where it stands if it is wrong, and what stands in if it is missing."""

import json
import signal
from dataclasses import FrozenInstanceError, fields
from pathlib import Path

import config_page
import pytest

from apsislib.catchup import CatchUp
from apsislib.config import Config, load
from apsislib.errors import JobErrors

ECS = """
cluster_name: c
container_name: n
default_task_definition: t
region: eu-west-1
aws_account_id: 012345678901
ebs_volume_role: r
log_group: g
log_stream_prefix: p
default_mem_gb: 2
default_vcpu: 0.5
default_disk_gb: 20
"""


@pytest.fixture
def read(tmp_path):
    def read(text="", *overrides, env=None):
        path = tmp_path / "config.yaml"
        path.write_text(text)
        return load(path, overrides, env or {})

    return read


@pytest.fixture
def wrong(read):
    def wrong(text="", *overrides, env=None):
        with pytest.raises(JobErrors) as caught:
            read(text, *overrides, env=env)
        return [(e.line, e.message) for e in caught.value.errors]

    return wrong


def test_without_a_file_all_is_default_and_relative_to_the_working_directory():
    config = load(None, environ={})
    assert config == Config()
    assert config.job_dir == Path("jobs") and config.database.path == Path("apsis.db")


def test_an_empty_file_empty_sections_and_nulls_are_defaults(read, tmp_path):
    config = read("")
    assert config.job_dir == tmp_path / "jobs" and config.database.path == tmp_path / "apsis.db"
    names = [f.name for f in fields(Config) if f.metadata]
    assert read("".join(f"{n}:\n" for n in names)) == config
    assert (
        read("runs: {lookback: null}\nprocstar: {agent: {server: , connection: {reconnect_timeout: ~}}}")
        == config
    )


def test_defaults_are_as_documented():
    agent = Config().procstar.agent
    assert (agent.enable, agent.local, agent.server.host, agent.server.port) == (False, False, None, 59789)
    assert (agent.connection.start_timeout, agent.connection.reconnect_timeout) == (None, 3600)
    assert (agent.run.update_interval, agent.run.output_interval) == (10, 1)
    assert agent.sudo.argv == ("/usr/bin/sudo", "--preserve-env", "--set-home") and agent.ecs is None
    assert Config().schedule.horizon == 86400 and Config().schedule.max_expected == 2000
    assert Config().output.max_size == 100_000_000 and Config().program.timeout.signal == signal.SIGTERM
    assert (Config().http.host, Config().http.port) == ("127.0.0.1", 5000)


def test_every_key_is_read(read, tmp_path):
    (tmp_path / "x.crt").write_text("")
    (tmp_path / "x.key").write_text("")
    config = read(f"""
job_dir: /srv/jobs
calendars: cal
database: {{path: state.db, timeout: 30s}}
runs: {{lookback: 7d, retention: 30 days}}
schedule: {{horizon: 2 days, since: now, max_age: 1h, on_max_age: fail, max_expected: 50,
           catch_up: {{policy: latest, window: 2h, cap: 5, pace: 0.5}}}}
waiting: {{max_time: 12h}}
program: {{timeout: {{duration: 1 day, signal: INT}}}}
output: {{max_size: 5 MiB, on_max_size: kill}}
reload: {{watch: true}}
http: {{host: 0.0.0.0, port: 8000, allowed_hosts: [apsis.example, proxy]}}
action: {{type: schedule, job_id: a, if: {{states: error}}}}
program_types: {{mine: acme.programs.Mine}}
schedule_types: {{s: a.B}}
condition_types: {{c: a.C}}
action_types: {{a: a.D}}
python: {{gc: {{enabled: no, threshold: [1, 2, 3]}}}}
smtp: {{host: mail, port: 587, ssl: starttls, auth: {{username: u, password: hush}}}}
procstar:
  agent:
    enable: true
    local: true
    server: {{host: '*', port: 50100, access_token: s3cret, tls: {{cert_path: x.crt}}}}
    connection: {{start_timeout: 0, reconnect_timeout: off}}
    run: {{update_interval: 1 min, output_interval: off}}
    sudo: {{argv: [/bin/sudo, -E]}}
    resource_defaults: {{mem_max_gb: 1.5}}
    ecs: {{{ECS.strip().replace(chr(10), ", ")}, max_mem_gb: 64, max_vcpu: 8, retain_ebs: true, sweep: off,
           start_timeout: 5 min, launch_type: FARGATE,
           network_configuration: {{awsvpcConfiguration: {{subnets: [a]}}}}}}
""")
    assert config.job_dir == Path("/srv/jobs") and config.calendars == tmp_path / "cal"
    assert (config.database.path, config.database.timeout) == (tmp_path / "state.db", 30)
    assert (config.runs.lookback, config.runs.retention) == (7 * 86400, 30 * 86400)
    schedule = config.schedule
    assert (schedule.horizon, schedule.since, schedule.max_age) == (172800, "now", 3600)
    assert (schedule.on_max_age, schedule.max_expected) == ("fail", 50)
    assert schedule.catch_up == CatchUp("latest", 7200, 5, 0.5)
    assert config.waiting.max_time == 43200
    assert (config.program.timeout.duration, config.program.timeout.signal) == (86400, signal.SIGINT)
    assert (config.output.max_size, config.output.on_max_size) == (5 * 2**20, "kill")
    assert config.reload.watch == 5
    assert (config.http.host, config.http.port) == ("0.0.0.0", 8000)
    assert config.http.allowed_hosts == ("apsis.example", "proxy")
    assert [a.job_id for a in config.action] == ["a"]
    assert config.program_types == {"mine": "acme.programs.Mine"} and config.action_types == {"a": "a.D"}
    assert config.schedule_types == {"s": "a.B"} and config.condition_types == {"c": "a.C"}
    assert (config.python.gc.enabled, config.python.gc.threshold) == (False, (1, 2, 3))
    assert (config.smtp.ssl, config.smtp.auth.password) == ("starttls", "hush")
    agent = config.procstar.agent
    assert agent.enable and agent.local
    assert (agent.server.host, agent.server.port, agent.server.access_token) == (None, 50100, "s3cret")
    assert (agent.server.tls.cert_path, agent.server.tls.key_path) == (tmp_path / "x.crt", tmp_path / "x.key")
    assert (agent.connection.start_timeout, agent.connection.reconnect_timeout) == (0, None)
    assert (agent.run.update_interval, agent.run.output_interval) == (60, None)
    assert agent.sudo.argv == ("/bin/sudo", "-E") and agent.resource_defaults.mem_max_gb == 1.5
    assert (agent.ecs.aws_account_id, agent.ecs.default_vcpu, agent.ecs.retain_ebs) == (
        "012345678901",
        0.5,
        True,
    )
    assert (agent.ecs.start_timeout, agent.ecs.sweep, agent.ecs.launch_type) == (300, None, "FARGATE")
    assert agent.ecs.network_configuration == {"awsvpcConfiguration": {"subnets": ["a"]}}


ENABLED = "procstar: {agent: {enable: true, server: {plain: true}, ecs: {%s}}}"


def test_the_place_of_tasks_is_given_as_aws_takes_it(read, wrong):
    ecs = ECS.strip().replace("\n", ", ")

    def strategy(text):
        config = read(ENABLED % f"{ecs}, capacity_provider_strategy: {text}")
        return config.procstar.agent.ecs.capacity_provider_strategy

    assert strategy("FARGATE_SPOT") == ({"capacityProvider": "FARGATE_SPOT"},)
    assert strategy("[{capacityProvider: a, weight: 2}]") == ({"capacityProvider": "a", "weight": 2},)
    for bad in ("[]", "[a]", "[{name: a}]", "[{capacityProvider: a, wait: 1}]"):
        assert (
            "capacityProvider, weight, base"
            in wrong(ENABLED % f"{ecs}, capacity_provider_strategy: {bad}")[0][1]
        )
    both = wrong(ENABLED % f"{ecs}, launch_type: EC2, capacity_provider_strategy: a")
    assert "together with launch_type" in both[0][1]


def test_what_ecs_programs_ask_for_by_default_must_be_allowed(wrong):
    ecs = ECS.strip().replace("\n", ", ")
    (error,) = wrong(ENABLED % f"{ecs}, max_vcpu: 0.25")
    assert error[1] == "procstar.agent.ecs.default_vcpu: 0.5 is more than max_vcpu, 0.25"


@pytest.mark.parametrize(("text", "seconds"), [("true", 300), ("off", None), ("false", None), ("1 min", 60)])
def test_orphaned_tasks_are_looked_for_every_few_minutes(read, text, seconds):
    ecs = ECS.strip().replace("\n", ", ")
    assert read(ENABLED % f"{ecs}, sweep: {text}").procstar.agent.ecs.sweep == seconds


def test_ecs_programs_without_an_agent_server_are_warned_about(read):
    config = read(f"procstar: {{agent: {{ecs: {{{ECS.strip().replace(chr(10), ', ')}}}}}}}")
    assert "procstar.agent.enable" in config.warnings[0]


def test_the_short_form_of_database_is_its_path(read, tmp_path):
    assert read("database: x.db").database.path == tmp_path / "x.db"
    config = read("database: x.db", "database.timeout=9s")
    assert (config.database.path, config.database.timeout) == (tmp_path / "x.db", 9)


def test_since_may_be_a_time_with_or_without_quotes(read, wrong):
    for text in ("2031-05-06T07:08:09Z", "'2031-05-06T07:08:09Z'", "2031-05-06 07:08:09 +00:00"):
        assert read(f"schedule: {{since: {text}}}").schedule.since == 1935817689
    assert wrong("schedule: {since: 2031-05-06}") == [
        (1, "schedule.since must be a time, not a date: write 2031-05-06T00:00:00Z")
    ]
    assert "no time zone" in wrong("schedule: {since: 2031-05-06 07:08:09}")[0][1]


@pytest.mark.parametrize("value, size", [("5", 5), ("100 MB", 10**8), ("1.5GiB", 3 * 2**29), ("'7 b'", 7)])
def test_sizes_are_numbers_or_texts_with_a_unit(read, value, size):
    assert read(f"output: {{max_size: {value}}}").output.max_size == size


def test_retention_is_a_duration_off_or_left_to_the_database(read):
    assert [read(f"runs: {{retention: {v}}}").runs.retention for v in ("off", "false", "", "90 d")] == [
        "off",
        "off",
        None,
        90 * 86400,
    ]


@pytest.mark.parametrize(
    "text, message",
    [
        ("database: {timeout: 0}", "database.timeout has negative duration: 0"),
        ("waiting:\n  max_time: -5m", "waiting.max_time has negative duration: -5m"),
        ("program: {timeout: {signal: SIGFOO}}", "program.timeout.signal: not a signal: SIGFOO"),
        ("runs: {lookback: 1w}", "runs.lookback: can't parse as duration: 1w: unknown unit w"),
        ("schedule: {max_expected: 0}", "schedule.max_expected must be a whole number from 1 to 1000000: 0"),
        ("schedule: {catch_up: most}", "schedule.catch_up: must be one of all, latest, none: 'most'"),
        ("schedule: {catch_up: {cap: 0}}", "schedule.catch_up: must be a whole number from 1 to 1000000: 0"),
        ("schedule: {on_max_age: skip}", "schedule.on_max_age must be one of record, fail: 'skip'"),
        ("output: {max_size: 0}", "output.max_size must be above 0 and below 1 PB: 0"),
        ("http: {port: 65536}", "http.port must be a whole number from 0 to 65535: 65536"),
        ("http: 5", "http must be a mapping of keys to values: 5"),
        ("procstar: {agent: {local: 1}}", "procstar.agent.local must be true or false: 1"),
        ("program_types: {a: B}", "program_types: must be a class like package.module.Class: 'B'"),
        (
            "action: {type: nope}",
            "action: unknown action type: nope (known: schedule, email, or a class: package.module.Class)",
        ),
        ("action: [{type: schedule, job_id: a}, 3]", "action: an action must be a mapping with a type"),
        ("job_dir: ''", "job_dir must be a path: ''"),
        ("http: {host: [a]}", "http.host must be a text: ['a']"),
        (
            "output: {max_size: 5 parsecs}",
            "output.max_size must be a number of bytes, or like 100 MB (units: kB, ",
        ),
        (
            "procstar: {agent: {resource_defaults: {mem_max_gb: -1}}}",
            "procstar.agent.resource_defaults.mem_max_gb",
        ),
        (
            "procstar: {agent: {sudo: {argv: sudo -n}}}",
            "procstar.agent.sudo.argv must be a list, of an executable",
        ),
        ("action_types: [a]", "action_types must be a mapping: ['a']"),
        (
            "procstar: {agent: {ecs: {aws_account_id: 12x}}}",
            "procstar.agent.ecs.aws_account_id must be an AWS",
        ),
        (
            "python: {gc: {threshold: [1, 2]}}",
            "python.gc.threshold must be a list of three whole numbers: [1, 2]",
        ),
        (
            "procstar: {agent: {ecs: {region: r, default_mem_gb: 1}}}",
            "procstar.agent.ecs config is missing required keys: cluster_name, container_name, "
            "default_task_definition, aws_account_id, ebs_volume_role, log_group, log_stream_prefix, "
            "default_vcpu, default_disk_gb",
        ),
    ],
)
def test_a_wrong_value_is_named_with_its_key(wrong, text, message):
    assert any(m.startswith(message) for _, m in wrong(text))


def test_all_errors_come_together_with_their_lines(wrong):
    text = "waiting:\n  max_time: x\nhttp:\n  port: no\n  prot: 1\nprogram:\n  timeout:\n    signal: 99\n"
    assert [line for line, _ in wrong(text)] == [2, 4, 5, 8]


@pytest.mark.parametrize(
    "text, near",
    [
        ("jobdirs: x", "unknown key: jobdirs (did you mean job_dir?)"),
        ("schedule: {horizn: 1}", "unknown key: schedule.horizn (did you mean schedule.horizon?)"),
        ("horizon: 1", "unknown key: horizon (did you mean schedule.horizon?)"),
        ("actions: []", "unknown key: actions (did you mean action?)"),
        ("procstar: {agent: {prot: 1}}", "unknown key: procstar.agent.prot (known here: enable, local, "),
        ("1: 2", "unknown key: 1 (known here: job_dir, "),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest_name(wrong, text, near):
    [(line, message)] = wrong(text)
    assert line == 1 and message.startswith(near)


def test_documented_keys_that_nothing_reads_warn(read, tmp_path):
    config = read("host_groups: {a: b}\nprocstar:\n  agent:\n    server:\n      reconnect_timeout: 5\n")
    first, second = config.warnings
    assert first.startswith(f"{tmp_path}/config.yaml:1: host_groups has no effect")
    assert second.startswith(
        f"{tmp_path}/config.yaml:5: procstar.agent.server.reconnect_timeout has no effect"
    )
    assert config.procstar.agent.connection.reconnect_timeout == 3600


def test_older_names_are_taken_with_a_warning(read, tmp_path):
    for text in ("jobs: x", "jobdir: x", "job_dirs: x", "job_dirs: [x]"):
        config = read(text)
        assert config.job_dir == tmp_path / "x" and "write job_dir" in config.warnings[0]
    config = read("runs_lookback: 86400\nschedule_max_age: 5m\nschedule: {horizon: 7}\n")
    assert (config.runs.lookback, config.schedule.max_age, config.schedule.horizon) == (86400, 300, 7)
    config = read("jobs: x\njob_dir: y\n")
    assert config.job_dir == tmp_path / "y" and "jobs is ignored" in config.warnings[0]


def test_an_older_name_with_a_wrong_value_is_shown_at_its_line(wrong):
    assert wrong("# c\nruns_lookback: 1w\n")[0][0] == 2


def test_overrides_are_yaml_and_count_before_anything_is_checked(read, tmp_path):
    config = read(
        "waiting: {max_time: nonsense}\njobs: x\n",
        "waiting.max_time=5m",
        "procstar.agent.enable=false",
        "http.allowed_hosts=[a, b]",
        "runs.lookback=null",
        "jobs=elsewhere",
        "schedule.horizon=",
        "database=o.db",
    )
    assert config.waiting.max_time == 300 and config.procstar.agent.enable is False
    assert config.http.allowed_hosts == ("a", "b") and config.runs.lookback is None
    assert config.job_dir == tmp_path / "elsewhere" and config.schedule.horizon == 86400
    assert config.database.path == tmp_path / "o.db"
    assert load(None, ["http.port=0"], {}).http.port == 0


@pytest.mark.parametrize(
    "override, message",
    [
        ("http.port", "write it as NAME=VALUE"),
        ("=3", "write it as NAME=VALUE"),
        ("http..port=3", "write it as NAME=VALUE"),
        ("http.port=x", "http.port must be a whole number"),
        ("http.port=[", "not valid YAML"),
        ("http.prot=1", "did you mean http.port?"),
        ("job_dir.x=1", "job_dir is no section"),
    ],
)
def test_a_wrong_override_is_named(read, override, message):
    with pytest.raises(JobErrors) as caught:
        read("job_dir: j\n", override)
    [error] = caught.value.errors
    assert message in error.message and error.path.startswith("override") and error.line is None


def test_the_environment_stands_in_for_what_is_not_written(read, wrong, tmp_path):
    (tmp_path / "e.pem").write_text("")
    (tmp_path / "e.key").write_text("")
    env = {
        "PROCSTAR_AGENT_HOST": "10.0.0.1",
        "PROCSTAR_AGENT_PORT": "700",
        "PROCSTAR_AGENT_TOKEN": "t",
        "PROCSTAR_AGENT_CERT": str(tmp_path / "e.pem"),
        "ORA_CALENDARS": "/cal",
    }
    config = read("procstar: {agent: {enable: true, server: {port: 800}}}", env=env)
    server = config.procstar.agent.server
    assert (server.host, server.port, server.access_token) == ("10.0.0.1", 800, "t")
    assert server.tls.cert_path == tmp_path / "e.pem" and server.tls.key_path == tmp_path / "e.key"
    assert config.calendars == Path("/cal")
    assert not config.procstar.agent.local and config.warnings == ()
    with pytest.raises(JobErrors) as caught:
        read(env={"PROCSTAR_AGENT_PORT": "x"})
    assert str(caught.value.errors[0]).startswith("$PROCSTAR_AGENT_PORT: procstar.agent.server.port must be")


def test_certificate_and_key_have_to_be_there_if_agents_may_connect(read, wrong, tmp_path):
    tls = "{cert_path: gone.crt}"
    [(line, message)] = wrong(f"procstar:\n  agent:\n    enable: true\n    server:\n      tls: {tls}\n")
    assert line == 5 and message == f"procstar.agent.server.tls.cert_path: no such file: {tmp_path}/gone.crt"
    [(line, message)] = wrong("procstar: {agent: {enable: true, server: {tls: {key_path: k}}}}")
    assert "without cert_path" in message
    (tmp_path / "a.crt").write_text("")
    [(line, message)] = wrong("procstar: {agent: {enable: true, server: {tls: {cert_path: a.crt}}}}")
    assert message == f"procstar.agent.server.tls.key_path: no such file: {tmp_path}/a.key"
    for switch in ("enable: false", f"enable: true, server: {{plain: true, tls: {tls}}}"):
        read(f"procstar: {{agent: {{{switch}}}}}", env={"PROCSTAR_AGENT_CERT": "/none"})


def test_an_open_http_port_is_warned_of(read):
    assert "whoever reaches it" in read("http: {host: 0.0.0.0}").warnings[0]
    assert not read("http: {host: '::1'}").warnings


def test_a_certificate_in_the_working_directory_is_found_with_a_warning(tmp_path, monkeypatch, read):
    (tmp_path / "cwd").mkdir()
    for name in ("a.crt", "a.key"):
        (tmp_path / "cwd" / name).write_text("")
    monkeypatch.chdir(tmp_path / "cwd")
    config = read("procstar: {agent: {enable: true, server: {tls: {cert_path: a.crt}}}}")
    assert config.procstar.agent.server.tls.cert_path == Path("a.crt")
    assert config.procstar.agent.server.tls.key_path == Path("a.key")
    assert "is in the working directory" in config.warnings[0]


def test_what_is_shown_holds_no_secret(read):
    config = read(
        "procstar: {agent: {server: {access_token: s3cret}}}\nsmtp: {auth: {username: u, password: hush}}\n"
        "action: {type: schedule, job_id: a}\n"
    )
    text = json.dumps(config.shown())
    assert "s3cret" not in text and "hush" not in text and '"access_token": "***"' in text
    assert config.shown()["schedule"]["horizon"] == 86400 and "warnings" not in config.shown()


def test_a_secret_that_is_wrong_is_not_repeated(wrong, read):
    assert "77" not in str(wrong("procstar: {agent: {server: {access_token: [77]}}}"))
    with pytest.raises(JobErrors) as caught:
        read("", "procstar.agent.server.access_token=[77]")
    assert "77" not in str(caught.value.errors[0])


def test_a_file_that_cannot_be_read_is_one_clear_error(tmp_path, wrong):
    with pytest.raises(JobErrors) as caught:
        load(tmp_path / "none.yaml")
    assert str(caught.value.errors[0]) == f"{tmp_path}/none.yaml: can't be read: No such file or directory"
    assert wrong("- a\n") == [(1, "must be a mapping of keys to values")]
    assert wrong("a: 1\na: 2\n")[0][1].startswith("found duplicate key")
    assert wrong("a: [\n")[0][1].startswith("not valid YAML")


def test_the_configuration_is_frozen():
    with pytest.raises(FrozenInstanceError):
        Config().schedule.horizon = 1


def test_every_key_says_what_it_means():
    text = Path(__file__).parent.parent.joinpath("apsislib/config/keys.py").read_text().split("\n")
    undocumented = [
        line.strip()
        for before, line in zip(text, text[1:], strict=False)
        if " = _key(" in line
        and "def " not in line
        and "#" not in line
        and not before.strip().startswith("#")
    ]
    # Names that say it all, and the second of two that one comment explains.
    assert {u.split(":")[0] for u in undocumented} <= {
        "port", "host", "cluster_name", "region", "aws_account_id", "log_stream_prefix", "default_vcpu",
        "max_vcpu", "network_configuration", "username", "password",
    }  # fmt: skip


def test_the_page_of_keys_is_as_they_are(tmp_path):
    assert config_page.PAGE.read_text() == config_page.page(), "write it anew: python tests/config_page.py"
    example = config_page.PAGE.read_text().partition("```yaml server\n")[2].partition("```")[0]
    (tmp_path / "apsis.yaml").write_text(example)
    config = load(tmp_path / "apsis.yaml")
    assert (config.waiting.max_time, config.runs.retention, config.warnings) == (43200, 90 * 86400, ())
    assert config.procstar.agent.local and config.action
