"""What systemd is told: sd_notify's protocol, a datagram of NAME=VALUE lines to the socket it names."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import MutableMapping

log = logging.getLogger(__name__)

_NAMES = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")


class Notifier:
    """Speaks to systemd where it started this process, and to nobody elsewhere."""

    def __init__(self, environ: MutableMapping[str, str]) -> None:
        """Takes its variables out of `environ`: children must not speak for the server."""
        self._taken = {name: environ.pop(name) for name in _NAMES if name in environ}
        self._address = self._taken.get("NOTIFY_SOCKET", "")
        if self._address[:1] not in ("/", "@"):
            self._address = ""

    @property
    def interval(self) -> float | None:
        """Seconds between signs of life, half of what systemd waits; None: it wants none."""
        usec, pid = self._taken.get("WATCHDOG_USEC", ""), self._taken.get("WATCHDOG_PID", "")
        if not self._address or not usec.isdigit() or int(usec) == 0:
            return None
        return int(usec) / 2e6 if pid in ("", str(os.getpid())) else None

    def send(self, *lines: str) -> None:
        """E.g. "READY=1". What can't be sent is logged: it must not end the server."""
        if not self._address:
            return
        address = f"\0{self._address[1:]}" if self._address[0] == "@" else self._address
        text = "\n".join(line.replace("\n", " ") for line in lines)
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as door:
                door.settimeout(1.0)
                door.sendto(text.encode(), address)
        except OSError as error:
            log.warning("systemd could not be told %s: %s", lines[0], error)

    def give_back(self, environ: MutableMapping[str, str]) -> None:
        """For the process that takes the place of this one."""
        environ.update(self._taken)
