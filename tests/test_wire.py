"""Agent messages as bytes, replayed from the protocol's description and pulled apart in every way."""

from __future__ import annotations

import contextlib
import json
import resource
import struct
import sys
from collections.abc import Iterator
from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apsislib import wire
from apsislib.wire import FdEnd, FdHead, Stream, WireError, decode, encode

REGISTERED = bytes.fromhex("81 a4 74797065 aa 52656769737465726564")
FD_DATA = bytes.fromhex(
    "87 a474797065 aa50726f63466444617461 a770726f635f6964 a27031 a26664 a67374646f7574 a57374617274 00"
    "a473746f70 07 a8656e636f64696e67 c0 a464617461 c407 68690a6279650a"
)

# Every message of the protocol's description, in the key order that both sides emit.
SENT_BY_SERVER = [
    ('{"type":"Registered"}', wire.registered()),
    (
        '{"type":"ProcStartRequest","specs":{"a1f0":{"argv":["/usr/bin/bash","-c","date; sleep 3"],'
        '"env":{"inherit":true,"vars":{"APSIS_RUN_ID":"r2041"}},"fds":[["stdout",{"capture":{"mode":"tempfile",'
        '"encoding":null,"attached":false}}],["stderr",{"dup":{"fd":1}}]]}}}',
        wire.proc_start_request(
            {
                "a1f0": {
                    "argv": ["/usr/bin/bash", "-c", "date; sleep 3"],
                    "env": {"inherit": True, "vars": {"APSIS_RUN_ID": "r2041"}},
                    "fds": [
                        ["stdout", {"capture": {"mode": "tempfile", "encoding": None, "attached": False}}],
                        ["stderr", {"dup": {"fd": 1}}],
                    ],
                }
            }
        ),
    ),
    ('{"type":"ProcidListRequest"}', wire.procid_list_request()),
    ('{"type":"ProcResultRequest","proc_id":"a1f0"}', wire.proc_result_request("a1f0")),
    ('{"type":"ProcSignalRequest","proc_id":"a1f0","signum":15}', wire.proc_signal_request("a1f0", 15)),
    (
        '{"type":"ProcFdDataRequest","proc_id":"a1f0","fd":"stdout","start":4096,"stop":null}',
        wire.proc_fd_data_request("a1f0", "stdout", 4096),
    ),
    ('{"type":"ProcDeleteRequest","proc_id":"a1f0"}', wire.proc_delete_request("a1f0")),
]
SENT_BY_AGENT = [
    (
        '{"type":"Register","conn":{"conn_id":"6e0c4f5e-2b0c-4b27-9a52-7f6d0a6c3f11","group_id":"batch",'
        '"restricted_exe":null},"proc":{"pid":4120,"ppid":1,"uid":1001,"euid":1001,"username":"runner",'
        '"gid":1001,"egid":1001,"groupname":"runner","hostname":"node7"},"proc_ids":["a1f0"],'
        '"access_token":"s3cret","shutdown_state":"active"}',
        wire.register(
            {"conn_id": "6e0c4f5e-2b0c-4b27-9a52-7f6d0a6c3f11", "group_id": "batch", "restricted_exe": None},
            {
                "pid": 4120,
                "ppid": 1,
                "uid": 1001,
                "euid": 1001,
                "username": "runner",
                "gid": 1001,
                "egid": 1001,
                "groupname": "runner",
                "hostname": "node7",
            },
            ["a1f0"],
            "s3cret",
            "active",
        ),
    ),
    ('{"type":"ProcidList","proc_ids":["a1f0","b777"]}', wire.procid_list(["b777", "a1f0"])),
    (
        '{"type":"ProcResult","proc_id":"a1f0","res":{"state":"running","errors":[],"pid":4133}}',
        wire.proc_result("a1f0", {"state": "running", "errors": [], "pid": 4133}),
    ),
    ('{"type":"ProcDelete","proc_id":"a1f0"}', wire.proc_delete("a1f0")),
    ('{"type":"ProcUnknown","proc_id":"zz9"}', wire.proc_unknown("zz9")),
    (
        '{"type":"RequestError","msg":{"type":"ProcSignalRequest","proc_id":"a1f0","signum":15},'
        '"err":"no process"}',
        wire.request_error(wire.proc_signal_request("a1f0", 15), "no process"),
    ),
    ('{"type":"ShutDown","shutdown_state":"done"}', wire.shut_down("done")),
]
ALL = SENT_BY_SERVER + SENT_BY_AGENT
FULL = dict(wire.proc_fd_data("p1", "stdout", 0, b"hi\nbye\n"))


def pieces(data: bytes, size: int) -> Iterator[tuple[bytes, bool]]:
    for at in range(0, len(data), size):
        yield data[at : at + size], at + size >= len(data)


def read(stream: Stream, data: bytes, size: int = 1) -> list[Any]:
    return [item for piece, last in pieces(data, size) for item in stream.feed(piece, last)]


def joined(items: list[Any]) -> tuple[FdHead, bytes, FdEnd]:
    head, *data, end = items
    assert isinstance(head, FdHead) and isinstance(end, FdEnd)
    return head, b"".join(data), end


def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def test_the_bytes_of_registered_are_those_of_real_servers():
    assert encode(wire.registered()) == REGISTERED
    assert decode(REGISTERED) == {"type": "Registered"}


def test_the_bytes_of_output_are_those_of_real_agents():
    assert encode(wire.proc_fd_data("p1", "stdout", 0, b"hi\nbye\n")) == FD_DATA
    assert decode(FD_DATA) == FULL
    assert b"".join(wire.fd_data_pieces("p1", "stdout", 0, 7, [b"hi\n", b"", b"bye\n"])) == FD_DATA


@pytest.mark.parametrize(("text", "message"), ALL, ids=[m["type"] for _, m in ALL])
def test_each_message_is_what_the_protocol_says_in_both_directions(text, message):
    expected = json.loads(text)
    data = msgpack.packb(expected)
    assert encode(message) == data  # the same keys in the same order, `type` first
    assert decode(data) == expected == message
    assert read(Stream(), data) == [expected]


def test_every_known_message_has_a_constructor_and_the_list_is_complete():
    assert {m["type"] for _, m in ALL} | {"ProcFdData"} == set(wire.MESSAGES)


def test_type_may_come_anywhere_but_leaves_first():
    data = msgpack.packb({"proc_id": "a", "type": "ProcUnknown"})
    assert decode(data) == {"type": "ProcUnknown", "proc_id": "a"}
    assert encode({"proc_id": "a", "type": "ProcUnknown"}) == encode(wire.proc_unknown("a"))


def test_integers_of_any_width_arrive_and_the_unlimited_rss_stays_exact():
    wide = bytes.fromhex(
        "83 a474797065 b150726f635369676e616c52657175657374 a770726f635f6964 a161 a67369676e756d"
    )
    for number in ("0f", "cc0f", "cd000f", "ce0000000f", "cf000000000000000f", "d2 0000000f"):
        assert decode(wide + bytes.fromhex(number))["signum"] == 15
    unlimited = {"type": "ProcResult", "proc_id": "a", "res": {"rsslim": 2**64 - 1}}
    assert decode(encode(unlimited))["res"]["rsslim"] == 18446744073709551615


def test_binary_is_taken_where_a_string_is_due():
    data = msgpack.packb({b"type".decode(): b"ProcUnknown", "proc_id": b"caf\xc3\xa9"})
    assert decode(data) == {"type": "ProcUnknown", "proc_id": "café"}
    with pytest.raises(WireError, match="`proc_id` is not UTF-8"):
        decode(msgpack.packb({"type": "ProcUnknown", "proc_id": b"\xff"}))


def test_unknown_types_and_fields_are_left_to_the_caller():
    assert decode(encode({"type": "Novel", "x": [1]})) == {"type": "Novel", "x": [1]}
    assert decode(msgpack.packb({"type": "ProcDelete", "proc_id": "a", "new": 1}))["new"] == 1


def test_what_old_agents_leave_out_arrives_as_none():
    old = {k: v for k, v in SENT_BY_AGENT[0][1].items() if k != "proc_ids"}
    message = decode(msgpack.packb(old | {"proc": {"pid": 1}}))
    assert message["proc_ids"] is None
    assert message["proc"]["hostname"] is None
    request = decode(msgpack.packb({"type": "ProcFdDataRequest", "proc_id": "a", "fd": "stdout", "start": 0}))
    assert request["stop"] is None


@pytest.mark.parametrize(
    ("message", "text"),
    [
        ({"type": "ProcUnknown"}, "ProcUnknown without `proc_id`"),
        ({"type": "ProcUnknown", "proc_id": 7}, "`proc_id` must be a string, not int 7"),
        ({"type": "ProcSignalRequest", "proc_id": "a", "signum": "15"}, "`signum` must be a 32-bit integer"),
        ({"type": "ProcSignalRequest", "proc_id": "a", "signum": 15.0}, "not float 15.0"),
        ({"type": "ProcSignalRequest", "proc_id": "a", "signum": True}, "not bool True"),
        ({"type": "ProcSignalRequest", "proc_id": "a", "signum": 2**31}, "`signum` must be a 32-bit integer"),
        ({"type": "ShutDown", "shutdown_state": "dead"}, "one of active, idling, done"),
        ({"type": "ProcResult", "proc_id": "a", "res": None}, "`res` must be a map, not NoneType None"),
        ({"type": "ProcidList", "proc_ids": [1]}, "an array of strings"),
        ({"type": 7}, "needs a string `type`"),
        ({}, "needs a string `type`"),
        (
            SENT_BY_AGENT[0][1] | {"conn": {"conn_id": "x", "restricted_exe": None}},
            "`conn` without `group_id`",
        ),
    ],
)
def test_a_known_message_that_lacks_something_is_refused_with_its_field(message, text):
    with pytest.raises(WireError, match=text) as caught:
        decode(msgpack.packb(message))
    assert caught.value.message == message  # so that an agent can say which request it refuses


@pytest.mark.parametrize(
    ("message", "text"),
    [
        ({"type": "ProcUnknown", "procid": "a"}, "without `proc_id`"),
        ({"type": "ProcUnknown", "proc_id": "a", "more": 1}, "has no field `more`"),
        ({"type": "ProcFdDataRequest", "proc_id": "a", "fd": "stdout", "start": 0}, "without `stop`"),
        ({"proc_id": "a"}, "needs a string `type`"),
        ({"type": "ProcUnknown", "proc_id": "\ud800"}, "can't encode ProcUnknown"),
        ({"type": "ProcResult", "proc_id": "a", "res": {"x": 2**64}}, "can't encode ProcResult"),
        ({"type": "ProcResult", "proc_id": "a", "res": {"x": {1, 2}}}, "can't encode ProcResult"),
        ({"type": "ProcResult", "proc_id": "a", "res": {1: 2}}, "keys of a map must be strings, not int 1"),
    ],
)
def test_what_agents_would_drop_in_silence_is_never_sent(message, text):
    with pytest.raises(WireError, match=text):
        encode(message)


def test_errors_never_show_a_token_or_output():
    message = SENT_BY_AGENT[0][1] | {"access_token": ["hunter2"]}
    with pytest.raises(WireError) as caught:
        decode(msgpack.packb(message))
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"", "not MessagePack"),
        (b"\xc1", "not MessagePack"),
        (b"\xff\xfe garbage", "bytes after the message"),
        (msgpack.packb([1]), "a message is a map, not a list of length 1"),
        (msgpack.packb(7), "a message is a map, not int 7"),
        (REGISTERED + b"\xc0", "1 bytes after the message"),
        (REGISTERED[:-1], "not MessagePack"),
        (msgpack.packb({"type": "X", 1: 2}), "not MessagePack|keys of a map"),
        (msgpack.packb({"type": "X", "y": {b"k": 2}}), "keys of a map must be strings"),
        (msgpack.packb({"type": "X", "y": msgpack.ExtType(5, b"x")}), "extension types"),
        (msgpack.packb({"type": "X", "y": [msgpack.Timestamp(1)]}), "extension types"),
        (b"\x82\xa4type\xa1X\xa1y\xa2\xff\xfe", "not MessagePack"),
        (b"\x82\xa4type\xa1X\xa1y" + b"\x91" * 100 + b"\xc0", "nested more than 64 deep"),
        (b"\x82\xa4type\xa1X\xa1y" + b"\x91" * 1_000_000 + b"\xc0", "not MessagePack"),
        (b"\xdf\xff\xff\xff\xff\xa4type", "not MessagePack"),
        (b"\x82\xa4type\xa1X\xa1y\xdd\xff\xff\xff\xff", "not MessagePack"),
        (b"\x82\xa4type\xa1X\xa1y\xdb\xff\xff\xff\xff", "not MessagePack"),
        (b"\x82\xa4type\xa1X\xa1y\xc6\xff\xff\xff\xff", "not MessagePack"),
    ],
)
def test_what_is_no_message_is_refused_at_once(data, text):
    with pytest.raises(WireError, match=text):
        decode(data)


def test_a_small_message_cannot_declare_gigabytes():
    before = peak()
    bomb = b"\x82\xa4type\xa1X\xa1y" + b"\xdd\x00\xff\xff\xff" * 3_000_000
    with pytest.raises(WireError):
        decode(bomb)
    with pytest.raises(WireError, match="more than 200000 maps"):
        decode(b"\x82\xa4type\xa1X\xa1y\x9f" + (b"\xdd" + struct.pack(">I", 90_000) + b"\x80" * 90_000) * 15)
    assert peak() - before < 300 * 2**20


def test_a_message_above_the_cap_is_refused_before_it_is_complete():
    stream = Stream(limit=1000)
    stream.feed(b"\x82\xa4type\xaaProcResult\xa3res\xdb\x00\x00\xff\xff", False)
    with pytest.raises(WireError, match="more than 1000 bytes"):
        stream.feed(b"x" * 1000, False)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64, 1000])
def test_output_arrives_in_any_pieces(size):
    head, data, _ = joined(read(Stream(), FD_DATA, size))
    assert head == FdHead("p1", "stdout", 0, 7, None, 7)
    assert data == b"hi\nbye\n"


def test_one_stream_reads_message_after_message():
    stream = Stream()
    for data in (FD_DATA, REGISTERED, FD_DATA):
        assert read(stream, data, 5) == read(Stream(), data, 5)


def test_empty_output_has_a_head_and_an_end():
    data = encode(wire.proc_fd_data("p", "stderr", 5, b""))
    assert read(Stream(), data) == [FdHead("p", "stderr", 5, 5, None, 0), FdEnd()]


def test_the_end_comes_only_with_the_end_of_the_message():
    stream = Stream(limit=20)
    items = stream.feed(FD_DATA, False)
    assert [type(item) for item in items] == [FdHead, bytes]
    assert stream.feed(b"", True) == [FdEnd()]


@pytest.mark.parametrize("order", [("data", "type"), ("type", "data"), ("proc_id", "data", "type")])
def test_output_with_its_data_first_is_held_back_within_the_cap(order):
    data = msgpack.packb({name: FULL[name] for name in order} | FULL)
    head, output, _ = joined(read(Stream(), data))
    assert (head.size, output) == (7, b"hi\nbye\n")
    with pytest.raises(WireError, match="more than 60 bytes"):
        read(Stream(limit=60), data)


def test_unknown_fields_after_the_data_are_skipped_if_they_are_sound():
    data = msgpack.packb(FULL | {"new": [1, {"x": 2}], "newer": None})
    assert joined(read(Stream(limit=75), data))[1] == b"hi\nbye\n"
    for bad in (data[:-1], data + b"\xc0", data[:-2] + b"\xc1\xc0"):
        with pytest.raises(WireError):
            read(Stream(limit=75), bad)
    endless = Stream(limit=75)
    endless.feed(data, False)
    with pytest.raises(WireError, match="after the data"):
        for _ in range(100):
            endless.feed(b"x" * 1000, False)


def test_output_cut_short_says_how_much_is_missing():
    stream = Stream(limit=72)
    with pytest.raises(WireError, match="ends 3 bytes too early"):
        read(stream, FD_DATA[:-3], 10)
    assert read(stream, REGISTERED, 3) == [{"type": "Registered"}]


def test_a_bad_head_of_streamed_output_is_refused():
    bad = FULL | {"start": 2**63, "data": b"x" * 100}
    with pytest.raises(WireError, match="`start` must be a 64-bit integer"):
        read(Stream(limit=80), msgpack.packb(bad))


def test_after_an_error_the_rest_of_that_message_is_skipped_and_the_next_is_read():
    stream = Stream(limit=50)
    with pytest.raises(WireError):
        stream.feed(b"\x82\xa4type\xa1X" + b"\xa1y" * 50, False)
    assert stream.feed(FD_DATA, False) == []
    assert stream.feed(FD_DATA, True) == []
    assert read(stream, REGISTERED) == [{"type": "Registered"}]


def test_hundreds_of_megabytes_pass_in_bounded_memory():
    size = 300 * 2**20
    block = bytes(range(256)) * 1024  # 256 KiB
    before = peak()
    sent = wire.fd_data_pieces("p", "stdout", 7, size, (block for _ in range(size // len(block))))
    stream, got, heads = Stream(), 0, []
    for piece in sent:
        for item in stream.feed(piece, False):
            if isinstance(item, bytes):
                assert len(item) <= wire.MAX_PIECE
                got += len(item)
            else:
                heads.append(item)
    assert stream.feed(b"", True) == [FdEnd()]
    assert heads == [FdHead("p", "stdout", 7, 7 + size, None, size)]
    assert got == size
    assert peak() - before < 16 * 2**20


def test_a_piece_larger_than_1_mib_is_cut():
    data = encode(wire.proc_fd_data("p", "stdout", 0, b"x" * (3 * 2**20 + 5)))
    sizes = [len(item) for item in Stream().feed(data, True) if isinstance(item, bytes)]
    assert sizes == [2**20] * 3 + [5]
    sizes = [len(item) for item in Stream(limit=100).feed(data, True) if isinstance(item, bytes)]
    assert sizes == [2**20] * 3 + [5]


def test_output_that_is_not_what_was_promised_raises():
    for given_pieces in ([b"hi"], [b"hi", b"more"]):
        with pytest.raises(WireError, match="not the 5 bytes promised"):
            list(wire.fd_data_pieces("p", "stdout", 0, 5, given_pieces))
    with pytest.raises(WireError, match="don't fit one message"):
        list(wire.fd_data_pieces("p", "stdout", 0, 2**32, []))


@pytest.mark.parametrize("size", [0, 255, 256, 65535, 65536, 70000])
def test_pieces_and_whole_make_the_same_bytes(size):
    data = b"z" * size
    whole = encode(wire.proc_fd_data("p", "stdout", 3, data, "utf-8"))
    assert b"".join(wire.fd_data_pieces("p", "stdout", 3, size, [data], "utf-8")) == whole


values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@settings(max_examples=150)
@given(st.dictionaries(st.text(), values, max_size=5), st.integers(1, 40))
def test_any_result_survives_the_wire(res, size):
    message = wire.proc_result("p", res)
    assert read(Stream(), encode(message), size) == [message]


@settings(max_examples=200)
@given(st.binary(max_size=200), st.integers(1, 50), st.integers(10, 300), st.booleans())
def test_garbage_raises_nothing_but_wire_errors(data, size, limit, headed):
    if headed:
        data = FD_DATA[: len(data)] + data
    stream = Stream(limit)
    for piece, last in pieces(data, size):
        with contextlib.suppress(WireError):
            stream.feed(piece, last)
    stream.limit = 17
    assert read(stream, REGISTERED, 10) == ([{"type": "Registered"}])


def test_msgpack_has_its_compiled_half():
    assert "msgpack._cmsgpack" in sys.modules  # the other is 20 times slower, and knows other limits
