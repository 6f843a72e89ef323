"""The known messages: what each holds, a constructor for each, and the check of what is sent and received."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

Message = dict[str, Any]


class WireError(ValueError):
    """Bytes that are no message, or a message that lacks what it must have.

    `message` is the decoded map where there was one, so that an agent can name what it refuses.
    """

    def __init__(self, text: str, message: Message | None = None) -> None:
        super().__init__(text)
        self.message = message


@dataclass(frozen=True, slots=True)
class _Field:
    """What a field may hold. `nullable` ones may be nil, and absent when received."""

    what: str
    ok: Callable[[Any], bool]
    nullable: bool = False
    fields: Mapping[str, _Field] | None = None  # of a nested map
    ours: bool = False  # only our agents send it; absent in what others send


def _int(bits: int, signed: bool = True) -> Callable[[Any], bool]:
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1)) if signed else (0, 2**bits)
    return lambda value: type(value) is int and low <= value < high


def _nullable(field: _Field) -> _Field:
    return _Field(field.what, field.ok, True, field.fields)


STATES = ("active", "idling", "done")

_STR = _Field("a string", lambda value: type(value) is str)
_STRS = _Field(
    "an array of strings", lambda value: type(value) is list and all(type(v) is str for v in value)
)
_I32 = _Field("a 32-bit integer", _int(32))
_I64 = _Field("a 64-bit integer", _int(64))
_U32 = _Field("an unsigned 32-bit integer", _int(32, signed=False))
_MAP = _Field("a map", lambda value: type(value) is dict)
_BIN = _Field("binary", lambda value: isinstance(value, bytes | bytearray | memoryview))
_STATE = _Field("one of active, idling, done", lambda value: type(value) is str and value in STATES)

_CONN = {"conn_id": _STR, "group_id": _STR, "restricted_exe": _nullable(_STR)}
_PROC = {
    "pid": _nullable(_I32),
    "ppid": _nullable(_I32),
    "uid": _nullable(_U32),
    "euid": _nullable(_U32),
    "username": _nullable(_STR),
    "gid": _nullable(_U32),
    "egid": _nullable(_U32),
    "groupname": _nullable(_STR),
    "hostname": _nullable(_STR),
}

MESSAGES: Mapping[str, Mapping[str, _Field]] = {
    # server to agent
    "Registered": {},
    "ProcStartRequest": {"specs": _MAP},
    "ProcidListRequest": {},
    "ProcResultRequest": {"proc_id": _STR},
    "ProcSignalRequest": {"proc_id": _STR, "signum": _I32},
    "ProcFdDataRequest": {"proc_id": _STR, "fd": _STR, "start": _I64, "stop": _nullable(_I64)},
    "ProcDeleteRequest": {"proc_id": _STR},
    # agent to server
    "Register": {
        "conn": _Field("a map", _MAP.ok, fields=_CONN),
        "proc": _Field("a map", _MAP.ok, fields=_PROC),
        "proc_ids": _nullable(_STRS),  # absent before agent 0.4.1: nothing is known about what it holds
        "access_token": _STR,
        "shutdown_state": _STATE,
        # Which process of this conn_id it is. Others ignore what they do not know of a Register.
        "instance": _Field("a string", _STR.ok, True, ours=True),
    },
    "ProcidList": {"proc_ids": _STRS},
    "ProcResult": {"proc_id": _STR, "res": _MAP},
    "ProcFdData": {
        "proc_id": _STR,
        "fd": _STR,
        "start": _I64,
        "stop": _I64,
        "encoding": _nullable(_STR),
        "data": _BIN,
    },
    "ProcDelete": {"proc_id": _STR},
    "ProcUnknown": {"proc_id": _STR},
    "RequestError": {"msg": _MAP, "err": _STR},
    "ShutDown": {"shutdown_state": _STATE},
}


def registered() -> Message:
    return {"type": "Registered"}


def proc_start_request(specs: Mapping[str, Mapping[str, Any]]) -> Message:
    """`specs` is proc ID -> process specification; one a message is safest."""
    return {"type": "ProcStartRequest", "specs": dict(specs)}


def procid_list_request() -> Message:
    return {"type": "ProcidListRequest"}


def proc_result_request(proc_id: str) -> Message:
    return {"type": "ProcResultRequest", "proc_id": proc_id}


def proc_signal_request(proc_id: str, signum: int) -> Message:
    return {"type": "ProcSignalRequest", "proc_id": proc_id, "signum": int(signum)}


def proc_fd_data_request(proc_id: str, fd: str, start: int, stop: int | None = None) -> Message:
    """Bytes [start, stop) of what `fd` has written; None asks for all there is.

    While the process runs `stop` must be None: real agents damage the output otherwise.
    """
    return {"type": "ProcFdDataRequest", "proc_id": proc_id, "fd": fd, "start": start, "stop": stop}


def proc_delete_request(proc_id: str) -> Message:
    return {"type": "ProcDeleteRequest", "proc_id": proc_id}


def register(
    conn: Mapping[str, Any],
    proc: Mapping[str, Any],
    proc_ids: Iterable[str],
    access_token: str,
    shutdown_state: str,
    instance: str | None = None,
) -> Message:
    """`conn` has conn_id, group_id, restricted_exe; `proc` the nine facts about the agent's own process.

    `instance`: an ID of the agent's process, by which two with the same conn_id are told apart.
    """
    more = {} if instance is None else {"instance": instance}
    return {
        "type": "Register",
        "conn": dict(conn),
        "proc": dict(proc),
        "proc_ids": sorted(proc_ids),
        "access_token": access_token,
        "shutdown_state": shutdown_state,
        **more,
    }


def procid_list(proc_ids: Iterable[str]) -> Message:
    return {"type": "ProcidList", "proc_ids": sorted(proc_ids)}


def proc_result(proc_id: str, res: Mapping[str, Any]) -> Message:
    return {"type": "ProcResult", "proc_id": proc_id, "res": dict(res)}


def proc_fd_data(proc_id: str, fd: str, start: int, data: bytes, encoding: str | None = None) -> Message:
    return {
        "type": "ProcFdData",
        "proc_id": proc_id,
        "fd": fd,
        "start": start,
        "stop": start + len(data),
        "encoding": encoding,
        "data": data,
    }


def proc_delete(proc_id: str) -> Message:
    return {"type": "ProcDelete", "proc_id": proc_id}


def proc_unknown(proc_id: str) -> Message:
    return {"type": "ProcUnknown", "proc_id": proc_id}


def request_error(msg: Mapping[str, Any], err: str) -> Message:
    """`msg` is the refused request, its `type` included."""
    return {"type": "RequestError", "msg": dict(msg), "err": err}


def shut_down(shutdown_state: str) -> Message:
    return {"type": "ShutDown", "shutdown_state": shutdown_state}


def check(
    where: str, message: Any, fields: Mapping[str, _Field], exact: bool, root: Message | None = None
) -> None:
    """Raise WireError unless `message` has `fields`; a received one gets nil for absent nullable ones."""
    root = message if root is None else root
    for name, field in fields.items():
        if name not in message:
            if field.ours:
                continue
            if exact or not field.nullable:
                raise WireError(f"{where} without `{name}`", root)
            message[name] = None
            continue
        value = message[name]
        if value is None and field.nullable:
            continue
        if not exact and isinstance(value, bytes) and field.ok(""):
            value = message[name] = as_text(value, f"{where} `{name}`")
        if not field.ok(value):
            raise WireError(f"{where} `{name}` must be {field.what}, not {show(value)}", root)
        if field.fields is not None:
            check(f"{where} `{name}`", value, field.fields, exact, root)
    if exact:
        for name in message:
            if name not in fields and name != "type":
                raise WireError(f"{where} has no field `{name}`", root)


def as_text(value: bytes, where: str) -> str:
    """Real agents take binary where a string is due, so do we."""
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        raise WireError(f"{where} is not UTF-8: {error}") from error


def show(value: Any) -> str:
    """`value` for an error message: short, and never the content of a secret or of output."""
    if isinstance(value, str | bytes | dict | list | tuple):
        return f"a {type(value).__name__} of length {len(value)}"
    return f"{type(value).__name__} {value!r:.40}"
