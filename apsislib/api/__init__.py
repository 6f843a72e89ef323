"""The HTTP API and the door it comes through.

Read routes.py first: the table of addresses. A handler is a function of (Parts, Request) that answers
a Response, and is pure but for what it asks of the driver and the store; message.py says what these
are, server.py has the port and its threads, exchange.py one connection.
"""

from apsislib.api.message import Request, Response
from apsislib.api.parts import Engine, Parts
from apsislib.api.server import Server

__all__ = ["Engine", "Parts", "Request", "Response", "Server"]
