"""What a killed program leaves behind: its children do not get the signal, and would go on unseen.

Agents signal a process, not its descendants; some of them, where they have been given cgroups, kill what
is left at its end, others do not. So after the end of a program that was killed, or was to end, its
session, which it led, is looked for at the agent and killed. What has left that session, as daemons do,
is none of ours to kill, but told of: it is known by the run ID in its environment.
"""

from __future__ import annotations

from collections.abc import Callable

from programs.aside import Aside
from programs.base import Agents

SLACK = 30  # seconds from the end of a program until its remains are looked for, at most

# $1: the number that the program had; $2: its run ID; $3: for how many seconds it ran, at most.
# Only what every shell has built in. Prints "killed PID..." and "left PID NAME". A number that is in use
# again is another process's: then nothing is done.
SWEEP = """\
sid=$1 run=$2 took=$3
[ -e /proc/$sid ] && exit 0
members() {
  found=
  for at in /proc/[0-9]*; do
    line=; read -r line < $at/stat || continue
    set -- ${line##*) }
    [ "$4" = $sid ] && [ "$1" != Z ] && found="$found ${at#/proc/}"
  done
}
mine() {
  while IFS= read -r line || [ -n "$line" ]; do
    case "$line" in *"APSIS_RUN_ID=$run"[!0-9]*|*"APSIS_RUN_ID=$run") return 0;; esac
    line=
  done < $1/environ
  return 1
}
sweep() {
  members
  if [ -n "$found" ]; then
    echo killed$found
    kill -s KILL $found
    tries=0
    while members; [ -n "$found" ] && [ $tries -lt 50 ]; do tries=$((tries+1)); done
  fi
  left=$found
  read -r up rest < /proc/uptime
  since=$(((${up%.*} - took) * 100))  # ticks, of which /proc counts a hundred in a second
  for at in /proc/[0-9]*; do
    line=; read -r line < $at/stat || continue
    set -- ${line##*) }
    [ "$1" = Z ] && continue
    shift 19
    [ "$1" -ge "$since" ] || continue
    [ ${at#/proc/} = $$ ] || { mine $at && left="$left ${at#/proc/}"; }
  done
  for pid in $left; do
    name=; read -r name < /proc/$pid/comm && echo left $pid $name
  done
}
sweep 2>/dev/null
exit 0
"""


def sweep(
    agents: Agents, conn_id: str, pid: int, run_id: str, took: float, told: Callable[[str], None]
) -> None:
    """(the agent's thread) Kill what is left of the session of a program that has ended, and tell of it.

    `took`: seconds that it ran, before which nothing of it can have begun. Nothing is told where nothing
    is left, nor where the agent does not run a shell.
    """
    argv = ["/bin/sh", "-c", SWEEP, "sh", str(pid), run_id, str(int(took) + SLACK)]

    def swept(failure: str | None, output: str) -> None:
        if failure is not None:
            return
        for line in output.splitlines():
            what, *rest = line.split()
            if what == "killed":
                told(f"the program left processes behind, which were killed: {' '.join(rest)}")
            elif what == "left":
                told(f"a process of the run has outlived it: pid {rest[0]} ({' '.join(rest[1:])})")

    Aside(agents, conn_id, argv, swept).start()
