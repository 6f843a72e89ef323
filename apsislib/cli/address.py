"""Where the server is: APSIS_HOST, then --host and --port."""

from __future__ import annotations

from collections.abc import Mapping

HOST, PORT = "localhost", 5000


def split(text: str) -> tuple[str, int | None]:
    """Host and port of `host`, `host:port`, `[v6]` or `[v6]:port`. Raises ValueError."""
    host, port = text.strip(), ""
    if host.startswith("["):
        host, bracket, port = host[1:].partition("]")
        if not bracket or (port and not port.startswith(":")):
            raise ValueError(f"not an address: {text!r}; write it [ADDRESS]:PORT")
        port = port[1:]
    elif host.count(":") == 1:
        host, _, port = host.partition(":")
    if not host or any(char in host for char in "/@?# []"):
        raise ValueError(f"not an address: {text!r}; write it HOST or HOST:PORT, without http://")
    return host, parse_port(port) if port else None


def parse_port(text: str) -> int:
    if not (text.isascii() and text.isdigit()) or len(text) > 5 or not 0 < int(text) < 65536:
        raise ValueError(f"not a port: {text!r}; it is a number from 1 to 65535")
    return int(text)


def find(host: str | None, port: int | None, environ: Mapping[str, str]) -> tuple[str, int]:
    """Host and port of the server, the options given. Raises ValueError."""
    found: tuple[str, int | None] = (HOST, None)
    if environ.get("APSIS_HOST"):
        try:
            found = split(environ["APSIS_HOST"])
        except ValueError as error:
            if host is None:
                raise ValueError(f"APSIS_HOST: {error}") from None
    if host is not None:
        # Another host is another server: its port is not that of the one in the environment.
        named = split(host)
        found = named if named[1] is not None or named[0] != found[0] else found
    return found[0], port or found[1] or PORT


def show(host: str, port: int) -> str:
    """As it is written in a URL."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
