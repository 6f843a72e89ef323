"""The door to AWS: boto3 is imported here alone, and only once a call is made.

What goes wrong is an AwsError: one line that names the call and what to do, and says whether the same
call may succeed later.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping
from typing import Any

CONNECT = 10.0  # seconds
READ = 60.0  # seconds; RunTask takes a few
CONNECTIONS = 10  # to each service, kept for calls at the same time
LONGEST = 600  # characters of an error

# Throttling by its many names, and what AWS says while it puts something in order.
LATER = {
    "Throttling",
    "ThrottlingException",
    "ThrottledException",
    "RequestThrottled",
    "RequestThrottledException",
    "RequestLimitExceeded",
    "TooManyRequestsException",
    "SlowDown",
    "LimitExceededException",  # e.g. of tasks that are being provisioned
    "ServerException",
    "ServiceUnavailable",
    "ServiceUnavailableException",
    "InternalFailure",
    "InternalError",
    "RequestTimeout",
    "RequestTimeoutException",
}
CREDENTIALS = {
    "UnrecognizedClientException",
    "InvalidClientTokenId",
    "InvalidSignatureException",
    "SignatureDoesNotMatch",
    "ExpiredToken",
    "ExpiredTokenException",
    "AuthFailure",
    "MissingAuthenticationToken",
}
ACCESS = {"AccessDeniedException", "AccessDenied", "UnauthorizedOperation", "BlockedException"}

NO_CREDENTIALS = (
    "give the server's host a role, or the server AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
    " in its environment"
)
ROOM = "add capacity to the cluster, or ask for less mem_gb and vcpu"


class AwsError(Exception):
    """A call that failed. `later`: the same call may succeed later; it is worth that many attempts."""

    def __init__(
        self,
        call: str,
        text: str,
        *,
        code: str = "",
        later: bool = False,
        attempts: float = math.inf,
        resources: tuple[str, ...] = (),
    ) -> None:
        super().__init__(f"{call}: {one_line(text)}")
        self.code = code
        self.later = later
        self.attempts = attempts
        self.resources = resources  # ARNs that a ConflictException names


class Aws:
    """The clients, made when first used. Any thread. Each method raises AwsError, and tries once."""

    def __init__(self, region: str, cluster: str) -> None:
        self._region = region
        self._cluster = cluster
        self._lock = threading.Lock()  # protects _clients; held while one is made: sessions are not shared
        self._clients: dict[str, Any] = {}

    def run_task(self, request: Mapping[str, Any]) -> dict[str, Any]:
        return self._call("ecs", "RunTask", request)

    def describe(self, arns: list[str], tags: bool = False) -> dict[str, Any]:
        """At most 100 at once."""
        include = {"include": ["TAGS"]} if tags else {}
        return self._call("ecs", "DescribeTasks", {"cluster": self._cluster, "tasks": arns, **include})

    def stop(self, arn: str, reason: str) -> None:
        """Harmless where the task has stopped; where ECS knows it no more, nothing is left to do."""
        try:
            self._call("ecs", "StopTask", {"cluster": self._cluster, "task": arn, "reason": reason[:255]})
        except AwsError as error:
            if "task was not found" not in str(error):
                raise

    def started_by(self, name: str) -> list[str]:
        """The ARNs of all tasks that were started by this, and are not to stop."""
        arns: list[str] = []
        request = {"cluster": self._cluster, "startedBy": name}
        while True:
            page = self._call("ecs", "ListTasks", request)
            arns += page.get("taskArns", ())
            if not page.get("nextToken"):
                return arns
            request = {**request, "nextToken": page["nextToken"]}

    def last_lines(self, group: str, stream: str, count: int) -> list[str]:
        """The last lines of a log stream; none if there is no such stream."""
        request = {"logGroupName": group, "logStreamName": stream, "limit": count, "startFromHead": False}
        try:
            answer = self._call("logs", "GetLogEvents", request)
        except AwsError as error:
            if error.code == "ResourceNotFoundException":
                return []
            raise
        return [str(event.get("message", "")) for event in answer.get("events", ())]

    def _call(self, service: str, call: str, request: Mapping[str, Any]) -> dict[str, Any]:
        from botocore import exceptions, xform_name

        try:
            client = self._client(service)
            answer: dict[str, Any] = getattr(client, xform_name(call))(**request)
            return answer
        except exceptions.ClientError as error:
            raise _answered(call, error.response) from error
        except exceptions.BotoCoreError as error:
            with self._lock:
                self._clients.pop(service, None)  # one that was made without credentials never gets any
            raise _unanswered(call, error) from error

    def _client(self, service: str) -> Any:
        import boto3
        from botocore.config import Config

        with self._lock:
            if service not in self._clients:
                # One attempt: calls.py knows when to try again, and keeps no thread waiting meanwhile.
                config = Config(
                    connect_timeout=CONNECT,
                    read_timeout=READ,
                    retries={"total_max_attempts": 1, "mode": "standard"},
                    max_pool_connections=CONNECTIONS,
                )
                session = boto3.session.Session(region_name=self._region)
                self._clients[service] = session.client(service, config=config)
            return self._clients[service]


def _answered(call: str, response: Mapping[str, Any]) -> AwsError:
    """What AWS refused."""
    error = response.get("Error") or {}
    code = str(error.get("Code") or "error")
    status = (response.get("ResponseMetadata") or {}).get("HTTPStatusCode") or 0
    text = f"{code}: {error.get('Message') or 'no message'}"
    remedy = _remedy(call, code, text)
    resources = tuple(str(arn) for arn in response.get("resourceIds") or ())
    later = code in LATER or status == 429 or status >= 500
    return AwsError(
        call, f"{text}; {remedy}" if remedy else text, code=code, later=later, resources=resources
    )


def _remedy(call: str, code: str, text: str) -> str | None:
    lower = text.lower()
    if code in ACCESS:
        if "passrole" in lower:
            return "allow the server's role iam:PassRole for this role (see docs/ecs.md)"
        return f"allow the server's role ecs:{call} (see docs/ecs.md)"
    if code in CREDENTIALS:
        return NO_CREDENTIALS
    if code == "ClusterNotFoundException":
        return "procstar.agent.ecs.cluster_name and region must name an existing cluster"
    if "capacity" in lower:
        return ROOM
    if "task definition" in lower or "taskdefinition" in lower:
        return "check task_definition, or procstar.agent.ecs.default_task_definition"
    if "container" in lower and ("override" in lower or "name" in lower):
        return "procstar.agent.ecs.container_name must name a container of the task definition"
    return None


def _unanswered(call: str, error: Exception) -> AwsError:
    """What did not get as far as AWS, or was not understood."""
    from botocore import exceptions

    # EndpointConnectionError, timeouts and connections that break off are all of these two. RunTask may
    # have been heard nevertheless: its clientToken makes the next one the same.
    if isinstance(error, exceptions.HTTPClientError | exceptions.ConnectionError):
        return AwsError(call, str(error), later=True)
    if "redential" in type(error).__name__ or isinstance(error, exceptions.TokenRetrievalError):
        # The host's own service, which knows its role, fails to answer now and then.
        return AwsError(call, f"{error}; {NO_CREDENTIALS}", later=True, attempts=3)
    if isinstance(error, exceptions.ParamValidationError):
        return AwsError(call, f"{error}; check procstar.agent.ecs in the server's file")
    return AwsError(call, str(error))


def refused(call: str, failures: list[Mapping[str, Any]]) -> str:
    """Why RunTask made no task: one line of its `failures`, and what to do."""
    told = []
    for failure in failures:
        reason, detail = failure.get("reason"), failure.get("detail")
        told.append(": ".join(str(part) for part in (reason or "no reason given", detail) if part))
    text = f"ECS task failed to start: {call}: {'; '.join(told) or 'no reason given'}"
    remedy = ""
    if any(str(f.get("reason")).startswith(("RESOURCE", "CAPACITY", "Capacity")) for f in failures):
        remedy = ROOM
    elif any(str(f.get("reason")) in ("AGENT", "ACTIVE", "INACTIVE") for f in failures):
        remedy = "check the container instances of the cluster"
    elif any(str(f.get("reason")) in ("ATTRIBUTE", "LOCATION") for f in failures):
        remedy = "the cluster has no instance such as the task definition requires"
    return one_line(f"{text}; {remedy}" if remedy else text)


def one_line(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= LONGEST else line[: LONGEST - 4] + " ..."
