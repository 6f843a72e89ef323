"""Agent messages <-> bytes: MessagePack maps whose key `type` names them. The only importer of msgpack.

What we send is strict: the constructors spell every field, and encode() refuses a known message with a
field missing, misspelled or of the wrong type, since agents drop what they cannot decode without a word.
What we receive is lenient: unknown fields are kept, unknown types are returned for the caller to decide,
nullable fields may be absent. Nothing received may cost more memory than a small multiple of its limit.

`ProcFdData` may hold hundreds of MB, so Stream hands its bytes through in pieces and fd_data_pieces makes
them; every other message is capped.
"""

from apsislib.wire.codec import MAX_MESSAGE, decode, encode
from apsislib.wire.messages import (
    MESSAGES,
    STATES,
    Message,
    WireError,
    proc_delete,
    proc_delete_request,
    proc_fd_data,
    proc_fd_data_request,
    proc_result,
    proc_result_request,
    proc_signal_request,
    proc_start_request,
    proc_unknown,
    procid_list,
    procid_list_request,
    register,
    registered,
    request_error,
    shut_down,
)
from apsislib.wire.stream import MAX_BIN, MAX_PIECE, FdEnd, FdHead, Item, Stream, fd_data_pieces

__all__ = [
    "MAX_BIN",
    "MAX_MESSAGE",
    "MAX_PIECE",
    "MESSAGES",
    "STATES",
    "FdEnd",
    "FdHead",
    "Item",
    "Message",
    "Stream",
    "WireError",
    "decode",
    "encode",
    "fd_data_pieces",
    "proc_delete",
    "proc_delete_request",
    "proc_fd_data",
    "proc_fd_data_request",
    "proc_result",
    "proc_result_request",
    "proc_signal_request",
    "proc_start_request",
    "proc_unknown",
    "procid_list",
    "procid_list_request",
    "register",
    "registered",
    "request_error",
    "shut_down",
]
