"""WebSocket subscribers: who is told at once what happens.

Each has a thread, `apsis-live-N`, which owns its socket and its subscription to the feed, and ends with
the connection. Nobody waits for a subscriber: one that reads too slowly overflows its own queue, is
told so (close code 1013), and may come back and ask for the whole again. What to come back does not mend,
such as bytes that are damaged, is said with 1011.

subscribers  Live: who is connected, the bound, the end
subscriber   what the three kinds have in common: one loop over socket and feed
summary      all jobs, runs and agents in arrays of messages
updates      one run: state, metadata, log, lengths of outputs; an object a frame
output       bytes of one output, as they are stored; binary frames with a small header
"""

from apsislib.live.subscribers import Live

__all__ = ["Live"]
