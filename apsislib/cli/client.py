"""The server, as a client sees it: HTTP requests and what goes wrong with them."""

from __future__ import annotations

import http.client
import json
import logging
import socket
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from urllib.parse import quote, urlencode

from apsislib.cli.address import show

CONNECT = 10.0  # s; a host that does not even refuse is not there
ANSWER = 60.0  # s for an answer; most take milliseconds
SLOW = 300.0  # s for one that does work: reading thousands of job files, making thousands of runs
PIECE = 2**16  # bytes of a download handed on at a time

log = logging.getLogger(__name__)


class Trouble(Exception):
    """No answer, or none that can be understood. The text is a sentence with a remedy."""

    status = 1  # of the command's exit


class Misuse(Trouble):
    """What was typed can't be meant."""

    status = 2


class Unwanted(Exception):
    """Who was asked does not want it."""


class ApiError(Exception):
    """The server's own answer that something can't be done."""

    def __init__(self, status: int, body: Mapping[str, Any]) -> None:
        self.status = status
        self.text = str(body.get("error") or "unknown error")
        found = body.get("job_errors")
        self.job_errors: list[tuple[str, str]] = [
            (str(pair[0]), str(pair[1]))
            for pair in (found if isinstance(found, list) else ())
            if isinstance(pair, list) and len(pair) == 2
        ]
        super().__init__(f"{self.text} [API status: {status}]")


class Client:
    """One server. Every call is a connection of its own: a client that waits holds none."""

    def __init__(self, host: str, port: int) -> None:
        self.host = host
        self.port = port

    @property
    def address(self) -> str:
        return show(self.host, self.port)

    def get(self, *path: str, query: Iterable[tuple[str, str]] = (), patience: float = ANSWER) -> Any:
        return self.call("GET", path, query, patience=patience)

    def post(
        self,
        *path: str,
        query: Iterable[tuple[str, str]] = (),
        body: Any = None,
        patience: float = ANSWER,
    ) -> Any:
        return self.call("POST", path, query, {} if body is None else body, patience)

    def put(self, *path: str, query: Iterable[tuple[str, str]] = ()) -> Any:
        return self.call("PUT", path, query, body={})

    def call(
        self,
        method: str,
        path: Iterable[str],
        query: Iterable[tuple[str, str]] = (),
        body: Any = None,
        patience: float = ANSWER,
    ) -> Any:
        """The JSON of an answer. Segments of `path` may hold anything. Raises ApiError, Trouble."""
        with self._asked(method, path, query, body, patience) as response:
            return self._json(response)

    def download(self, *path: str) -> Generator[bytes, None, tuple[int, bool]]:
        """The bytes of an answer, piece by piece. Raises ApiError, Trouble.

        It returns their number, and whether no more are to come, as the header X-Apsis-Complete says.
        """
        with self._asked("GET", path, (), None, ANSWER) as response:
            if response.status != 200:
                self._json(response)
            count = 0
            while piece := response.read1(PIECE):
                count += len(piece)
                yield piece
            if response.length:
                raise Trouble(
                    f"{self.address} ended the connection after {count} of"
                    f" {count + response.length} bytes; try again"
                )
            return count, response.headers.get("X-Apsis-Complete") != "false"

    def strange(self) -> Trouble:
        """What to raise when an answer has another form than ours."""
        return Trouble(
            f"{self.address} answers, but not as Apsis does; see whether --host and --port name the server"
        )

    def _json(self, response: http.client.HTTPResponse) -> Any:
        data = response.read()
        try:
            answer = json.loads(data)
        except (ValueError, RecursionError):
            if response.status < 300:
                raise self.strange() from None
            answer = {}
        if response.status >= 300:
            raise ApiError(response.status, answer if isinstance(answer, dict) else {})
        return answer

    @contextmanager
    def _asked(
        self,
        method: str,
        path: Iterable[str],
        query: Iterable[tuple[str, str]],
        body: Any,
        patience: float,
    ) -> Iterator[http.client.HTTPResponse]:
        url = target(path, query)
        data = None if body is None else json.dumps(body).encode()
        headers = {"Accept": "*/*", "Accept-Encoding": "identity"}
        if data is not None:
            headers["Content-Type"] = "application/json"
        connection = http.client.HTTPConnection(self.host, self.port, timeout=CONNECT)
        try:
            with self._explained("connecting", CONNECT):
                connection.connect()
            log.debug("%s %s", method, url)
            with self._explained("answering", patience):
                connection.sock.settimeout(patience)
                connection.request(method, url, data, headers)
                response = connection.getresponse()
                log.debug("%d %s", response.status, response.reason)
                yield response
        finally:
            connection.close()

    @contextmanager
    def _explained(self, doing: str, patience: float) -> Iterator[None]:
        """What goes wrong on the network, in sentences."""
        where = self.address
        try:
            yield
        except ConnectionRefusedError:
            raise Trouble(
                f"no server at {where}; start one with apsis serve, or name it with --host and --port"
            ) from None
        except TimeoutError:
            raise Trouble(
                f"{where}: timeout {doing} ({patience:g} s); see whether it is overloaded"
            ) from None
        except socket.gaierror as error:
            raise Trouble(
                f"unknown host {self.host} ({error.strerror}); check --host and APSIS_HOST"
            ) from None
        except UnicodeError:
            raise Trouble(f"not a host name: {self.host!r}; check --host and APSIS_HOST") from None
        except (http.client.IncompleteRead, http.client.RemoteDisconnected, ConnectionError):
            raise Trouble(f"{where} ended the connection without a whole answer; try again") from None
        except http.client.HTTPException as error:
            raise Trouble(
                f"{where} does not speak HTTP ({type(error).__name__}); check --host and --port"
            ) from None
        except OSError as error:
            raise Trouble(
                f"can't reach {where}: {error.strerror or error}; check --host and --port"
            ) from None


def target(path: Iterable[str], query: Iterable[tuple[str, str]] = ()) -> str:
    """The address of an API request, every segment quoted. Text from a command line may hold stray bytes."""
    quoted = "/".join(quote(part, safe="", errors="surrogateescape") for part in path)
    pairs = urlencode(list(query), errors="surrogateescape", quote_via=quote)
    return f"/api/{quoted}" + (f"?{pairs}" if pairs else "")
