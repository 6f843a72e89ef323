"""Agents whose network is cut and healed, in namespaces; where none may be made, behind proxies."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

HERE = Path(__file__).parent
# A namespace for the whole scenario, from which others are made; and a /run of its own for `ip netns`.
ENTER = ["unshare", "--net", "--mount", "--propagation", "private", "--map-root-user"]
RUN = 'mount -t tmpfs none /run; exec "$@"'


def namespace() -> list[str] | None:
    """What goes before a command to have it run as root of a network of its own; None: not permitted."""
    enter = [*(ENTER[:-1] if os.geteuid() == 0 else ENTER), "/bin/sh", "-ec", RUN, "sh"]
    probe = "ip link add x type veth peer name y; ip netns add z; ip netns exec z true"
    done = subprocess.run([*enter, "/bin/sh", "-ec", probe], capture_output=True, check=False)
    return enter if done.returncode == 0 else None


@pytest.mark.parametrize("kind", ["namespaces", "proxies"])
def test_two_agents_are_cut_and_healed(kind: str, tmp_path: Path) -> None:
    assert shutil.which("ip"), "ip is needed: apt-get install iproute2"
    enter = namespace() if kind == "namespaces" else []
    if enter is None:
        warnings.warn("no network namespace may be made here: proxies alone cut the agents off", stacklevel=1)
        return
    # Behind a proxy an attempt to connect hangs, ten seconds, where a network without a way refuses it.
    only = ["-k", "costs_nothing"] if kind == "proxies" else []
    scenario = [str(HERE / "network_scenario.py"), "-rP", "-o", "addopts=", *only]
    plugins = ["-p", "no:cacheprovider", "-p", "no:xdist", f"--basetemp={tmp_path / 'inner'}"]
    done = subprocess.run(
        [*enter, sys.executable, "-m", "pytest", *scenario, *plugins],
        cwd=HERE.parent,
        env=os.environ | {"APSIS_TEST_NETWORK": kind},
        capture_output=True,
        text=True,
        check=False,
    )
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{1 if only else 2} passed" in done.stdout
