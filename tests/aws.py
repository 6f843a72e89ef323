"""AWS for tests of ECS: moto's server as a process of its own, a proxy before it, and what ECS itself does.

The proxy holds every request against AWS's description of it, keeps clientTokens, fails where a test
wants it to, and says of tasks what moto cannot. The launcher does for each task what a container
instance would: it runs the image's entry point, a real agent, and tells when that has ended.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import boto3
import requests
from botocore.session import Session
from botocore.validate import ParamValidator

ROOT = Path(__file__).parent.parent
ENTRY_POINT = ROOT / "packaging" / "ecs" / "entrypoint.sh"
REGION = "eu-west-1"
CLUSTER = "main"
NETWORK = {"awsvpcConfiguration": {"subnets": ["subnet-1"], "securityGroups": []}}
SERVICES = {"AmazonEC2ContainerServiceV20141113": "ecs", "Logs_20140328": "logs"}
TICK = 0.3  # seconds between the launcher's looks, unless a call wakes it

# Task definitions that are not simply an agent; see Aws.define.
MISSING_IMAGE = "missing-image"
SILENT = "silent"
PENDING = "pending"

Params = dict[str, Any]
Answer = tuple[int, dict[str, Any]] | None  # None: the connection breaks off


def refusal(code: str, message: str, status: int = 400, **more: Any) -> Answer:
    return status, {"__type": code, "message": message, **more}


class Aws:
    """Made by `running()`."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.calls: list[tuple[str, Params]] = []
        self.invalid: list[str] = []  # requests that AWS would not have understood
        self.rules: list[tuple[str, Callable[[Params], Answer | str]]] = []
        self._tokens: dict[str, tuple[Params, dict[str, Any]]] = {}
        self._shown: dict[str, Params] = {}  # by ARN: what is said of a task beyond what moto knows
        self._changed = threading.Condition()
        self.agents: dict[str, subprocess.Popen[bytes]] = {}  # by ARN
        self.frozen: set[str] = set()  # ARNs of tasks that go on, whatever becomes of their agent
        self._models = {name: Session().get_service_model(name) for name in SERVICES.values()}
        self._stopping = threading.Event()

    @contextmanager
    def running(self) -> Iterator[Aws]:
        with ExitStack() as stack:
            log = stack.enter_context(open(self.directory / "moto.log", "ab"))
            environment = os.environ | {"AWS_REGION": REGION}
            argv = [sys.executable, "-c", _MOTO]
            moto = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=log, env=environment)
            stack.callback(moto.wait)
            stack.callback(moto.kill)
            assert moto.stdout is not None
            self.moto = f"http://127.0.0.1:{int(moto.stdout.readline())}"
            keys = {"aws_access_key_id": "test", "aws_secret_access_key": "test"}
            self.admin = boto3.client("ecs", REGION, endpoint_url=self.moto, **keys)
            self.logs = boto3.client("logs", REGION, endpoint_url=self.moto, **keys)
            # Tasks do not walk on by being looked at.
            still = {"progression": "manual", "times": 1_000_000}
            body = {"model_name": "ecs::task", "transition": still}
            requests.post(f"{self.moto}/moto-api/state-manager/set-transition", json=body, timeout=30)
            self.admin.create_cluster(clusterName=CLUSTER)
            for family in (MISSING_IMAGE, SILENT, PENDING):
                self.define(family)
            proxy = stack.enter_context(_Proxy(self))
            self.url = f"http://127.0.0.1:{proxy.server_address[1]}"
            stack.callback(self._end_agents)
            for target in (self._launch_for_ever, lambda: proxy.serve_forever(0.05)):
                thread = threading.Thread(target=target, name="test-aws")
                thread.start()
                stack.callback(thread.join)
            stack.callback(self._stopping.set)
            stack.callback(proxy.shutdown)
            yield self
            assert self.invalid == []

    def _end_agents(self) -> None:
        for agent in self.agents.values():
            _end_container(agent)
            agent.wait()

    def define(self, family: str, **environment: str) -> None:
        """Register a task definition, whose agent gets this environment."""
        container = {
            "name": "agent",
            "image": "apsis-agent",
            "memory": 512,
            "command": ["--wait", "--wait-timeout", "900", "--plain"],
            "environment": [{"name": name, "value": value} for name, value in environment.items()],
        }
        self.admin.register_task_definition(family=family, containerDefinitions=[container])

    # -- what tests ask ------------------------------------------------------------------------------

    def fail(self, call: str, answer: Answer | str, times: int = 1) -> None:
        """The next calls get this answer. "lost": they are heard, and their answers are not."""
        left = [times]

        def rule(params: Params) -> Answer | str:
            if not left[0]:
                return "on"
            left[0] -= 1
            return answer

        self.rules.append((call, rule))

    def until(self, holds: Callable[[], Any], what: str = "") -> Any:
        """What `holds` answers, once it is true."""
        with self._changed:
            found: list[Any] = []

            def look() -> bool:
                found.append(holds())
                return bool(found[-1])

            end = time.monotonic() + 60
            while not look():
                assert time.monotonic() < end, f"never: {what} {self.calls[-20:]}"
                self._changed.wait(0.5)
            return found[-1]

    def made(self, call: str) -> list[Params]:
        return [params for name, params in list(self.calls) if name == call]

    def tasks(self, tags: dict[str, str] | None = None, desired: str | None = None) -> list[Params]:
        """As ECS describes them; those with certain tags, or a certain desired status."""
        arns: list[str] = []
        for status in [desired] if desired else ["RUNNING", "STOPPED"]:
            arns += self.admin.list_tasks(cluster=CLUSTER, desiredStatus=status)["taskArns"]
        if not arns:
            return []
        found = self.admin.describe_tasks(cluster=CLUSTER, tasks=arns, include=["TAGS"])["tasks"]
        wanted = (tags or {}).items()
        return [t for t in found if wanted <= {tag["key"]: tag["value"] for tag in t["tags"]}.items()]

    def is_stopped(self, arn: str) -> bool:
        (task,) = self.admin.describe_tasks(cluster=CLUSTER, tasks=[arn], include=["TAGS"])["tasks"]
        return bool(task["lastStatus"] == "STOPPED")

    def end(self, arn: str, reason: str, exit_code: int | None = None, why: str | None = None) -> None:
        """The task stops, and says so."""
        container: Params = {"name": "agent", "lastStatus": "STOPPED"}
        container |= {} if exit_code is None else {"exitCode": exit_code}
        container |= {} if why is None else {"reason": why}
        self._shown[arn] = {"stoppedReason": reason, "containers": [container]}
        self.admin.stop_task(cluster=CLUSTER, task=arn, reason=reason)
        self._change()

    def kill_agent(self, arn: str) -> None:
        _end_container(self.agents[arn])

    def _change(self) -> None:
        with self._changed:
            self._changed.notify_all()

    # -- the proxy -----------------------------------------------------------------------------------

    def answer(self, service: str, call: str, params: Params, headers: dict[str, str]) -> Answer:
        shape = self._models[service].operation_model(call).input_shape
        report = ParamValidator().validate(params, shape)
        problems = [report.generate_report()] if report.has_errors() else []
        if call == "RunTask":
            problems += _unlike_aws(params)
        if problems:
            self.invalid.append(f"{call}: {problems}")
            return refusal("InvalidParameterException", "; ".join(problems))
        self.calls.append((call, params))
        self._change()
        verdict: Answer | str = "on"
        for name, rule in self.rules:
            if name == call and verdict == "on":
                verdict = rule(params)
        if verdict not in ("on", "lost"):
            assert not isinstance(verdict, str)
            return verdict
        answer = (
            self._run_task(params, headers) if call == "RunTask" else self._forward(call, params, headers)
        )
        self._change()
        return None if verdict == "lost" else answer

    def _run_task(self, params: Params, headers: dict[str, str]) -> Answer:
        token = params["clientToken"]
        if token in self._tokens:
            before, body = self._tokens[token]
            if before != params:
                arns = [task["taskArn"] for task in body["tasks"]]
                return refusal("ConflictException", "clientToken in use", resourceIds=arns)
            return 200, body
        # To moto every task is Fargate's, for which no container instance is needed.
        plain = {k: v for k, v in params.items() if k not in ("volumeConfigurations", "clientToken")}
        answer = self._forward("RunTask", plain | {"launchType": "FARGATE"}, headers)
        assert answer is not None
        if answer[0] == 200:
            self._tokens[token] = params, answer[1]
        return answer

    def _forward(self, call: str, params: Params, headers: dict[str, str]) -> Answer:
        # One who does not ask moto for tags takes them from whoever asks at the same time.
        asked = {**params, "include": ["TAGS"]} if call == "DescribeTasks" else params
        answer = requests.post(self.moto, data=json.dumps(asked), headers=headers, timeout=30)
        body = answer.json() if answer.content else {}
        if call == "DescribeTasks" and "include" not in params:
            for task in body.get("tasks", ()):
                del task["tags"]
        for task in body.get("tasks", ()):
            task |= self._shown.get(task["taskArn"], {})
        return answer.status_code, body

    # -- the launcher --------------------------------------------------------------------------------

    def _launch_for_ever(self) -> None:
        while not self._stopping.is_set():
            with self._changed:
                self._changed.wait(TICK)
            for task in self.tasks():
                arn = str(task["taskArn"])
                if arn not in self._shown:
                    self._begin(arn, task)
                agent = self.agents.get(arn)
                if agent is None or arn in self.frozen:
                    continue
                if task["lastStatus"] == "STOPPED":
                    _end_container(agent)
                elif (code := agent.poll()) is not None:
                    self.end(arn, "Essential container in task exited", code if code >= 0 else 128 - code)

    def _begin(self, arn: str, task: Params) -> None:
        """What becomes of a new task."""
        self._shown[arn] = {"lastStatus": "RUNNING"}
        family = task["taskDefinitionArn"].rpartition("/")[2].partition(":")[0]
        if task["lastStatus"] == "STOPPED":
            self._shown[arn] = {}
        elif family == MISSING_IMAGE:
            self.end(arn, "CannotPullContainerError: no such image", None, "pull access denied")
        elif family == PENDING:
            self._shown[arn] = {"lastStatus": "PENDING"}
        elif family != SILENT:
            definition = self.admin.describe_task_definition(taskDefinition=task["taskDefinitionArn"])
            container = definition["taskDefinition"]["containerDefinitions"][0]
            override = task["overrides"]["containerOverrides"][0]
            added = container["environment"] + override["environment"]
            ours = {k: v for k, v in os.environ.items() if not k.startswith(("AWS_", "PROCSTAR_", "APSIS_"))}
            environment = ours | {item["name"]: item["value"] for item in added}
            environment["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
            with open(self.directory / "agents.log", "ab") as log:
                self.agents[arn] = subprocess.Popen(
                    ["/bin/sh", str(ENTRY_POINT), *container["command"]],
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
            self._shown[arn] = {}
        self._change()


def _end_container(agent: subprocess.Popen[bytes]) -> None:
    """Kill an agent and its programs, each in a session of its own, as the end of their container would."""
    if agent.poll() is None:
        programs = Path(f"/proc/{agent.pid}/task/{agent.pid}/children").read_text().split()
        for pid in (agent.pid, *map(int, programs)):
            with suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)


def _unlike_aws(params: Params) -> list[str]:
    """What AWS's description does not say of RunTask, but its documentation does."""
    problems = []
    if not re.fullmatch(r"[!-~]{1,64}", params["clientToken"]):
        problems.append("clientToken")
    if not re.fullmatch(r"[\w/-]{1,128}", params["startedBy"], re.ASCII):
        problems.append("startedBy")
    if len(json.dumps(params["overrides"])) > 8192:
        problems.append("overrides")
    for item in params.get("volumeConfigurations", ()):
        volume = item["managedEBSVolume"]
        gib, iops, throughput = volume["sizeInGiB"], volume["iops"], volume["throughput"]
        if not (1 <= gib <= 16384 and 3000 <= iops <= min(16000, max(3000, 500 * gib))):
            problems.append("iops")
        if not 125 <= throughput <= min(1000, iops / 4):
            problems.append("throughput")
    return problems


class _Proxy(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, aws: Aws) -> None:
        self.aws = aws
        super().__init__(("127.0.0.1", 0), _Exchange)


class _Exchange(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Proxy

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        target, _, call = self.headers["X-Amz-Target"].partition(".")
        names = ("X-Amz-Target", "Content-Type", "Authorization", "X-Amz-Date")
        headers = {name: self.headers[name] for name in names if name in self.headers}
        answer = self.server.aws.answer(SERVICES[target], call, json.loads(body), headers)
        if answer is None:
            self.close_connection = True
            return
        status, data = answer
        text = json.dumps(data).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/x-amz-json-1.1")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, format: str, *args: object) -> None: ...


# moto_server, on a free port, which it prints.
_MOTO = """
import logging, sys
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server
logging.getLogger("werkzeug").setLevel(logging.ERROR)
server = make_server("127.0.0.1", 0, DomainDispatcherApplication(create_backend_app), threaded=True)
print(server.server_port, flush=True)
server.serve_forever()
"""
