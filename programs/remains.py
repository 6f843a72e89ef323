"""What a killed program leaves behind: its children do not get the signal, and would go on unseen.

Agents signal a process, not its descendants; some of them, where they have been given cgroups, kill what
is left at its end, others do not. So after the end of a program that was killed, or was to end, its
session, which it led, is looked for at the agent and killed. What has left that session, as daemons do,
is none of ours to kill, but told of: it is known by the ID of its process in its environment. A run ID
would not do: another Apsis, whose agent is on the same host, has a run r1 too.
"""

from __future__ import annotations

from collections.abc import Callable

from programs.aside import Aside
from programs.base import Agents

SLACK = 30  # seconds from the end of a program until its remains are looked for, at most

# $1: the number that the program had; $2: the ID of its process; $3: its run ID; $4: for how many seconds it
# ran, at most. Only what every shell has built in. Prints "killed PID...", "left PID NAME", and "like PID
# NAME" of what has the run ID alone. A number that is in use again is another's: then nothing is done.
SWEEP = """\
sid=$1 proc=$2 run=$3 took=$4
[ -e /proc/$sid ] && exit 0
members() {
  found=
  for at in /proc/[0-9]*; do
    line=; read -r line < $at/stat || continue
    set -- ${line##*) }
    [ "$4" = $sid ] && [ "$1" != Z ] && found="$found ${at#/proc/}"
  done
}
whose() {
  kind=
  while IFS= read -r line || [ -n "$line" ]; do
    case "$line" in
      *"APSIS_PROC_ID=$proc"*) kind=left; return;;
      *APSIS_PROC_ID=*) kind=; return;;
      *"APSIS_RUN_ID=$run"[!0-9]*|*"APSIS_RUN_ID=$run") kind=like;;
    esac
    line=
  done < $1/environ
}
sweep() {
  members
  if [ -n "$found" ]; then
    echo killed$found
    kill -s KILL $found
    tries=0
    while members; [ -n "$found" ] && [ $tries -lt 50 ]; do tries=$((tries+1)); done
  fi
  left=$found like=
  read -r up rest < /proc/uptime
  since=$(((${up%.*} - took) * 100))  # ticks, of which /proc counts a hundred in a second
  for at in /proc/[0-9]*; do
    line=; read -r line < $at/stat || continue
    set -- ${line##*) }
    [ "$1" = Z ] && continue
    shift 19
    [ "$1" -ge "$since" ] || continue
    [ ${at#/proc/} = $$ ] && continue
    whose $at
    case $kind in
      left) left="$left ${at#/proc/}";;
      like) like="$like ${at#/proc/}";;
    esac
  done
  for kind in left like; do
    pids=$left; [ $kind = like ] && pids=$like
    for pid in $pids; do
      name=; read -r name < /proc/$pid/comm && echo $kind $pid $name
    done
  done
}
sweep 2>/dev/null
exit 0
"""


def sweep(
    agents: Agents,
    conn_id: str,
    process: tuple[int, str, str],
    took: float,
    marked: bool,
    told: Callable[[str], None],
) -> None:
    """(the agent's thread) Kill what is left of the session of a program that has ended, and tell of it.

    `process`: the number that it had, its ID and its run's. `took`: seconds that it ran, before which nothing
    of it can have begun. `marked`: it surely was given its ID; earlier versions gave programs that of the run
    alone. Nothing is told where nothing is left, nor where the agent does not run a shell.
    """
    pid, proc_id, run_id = process
    argv = ["/bin/sh", "-c", SWEEP, "sh", str(pid), proc_id, run_id, str(int(took) + SLACK)]

    def swept(failure: str | None, output: str) -> None:
        if failure is not None:
            return
        for line in output.splitlines():
            what, *rest = line.split()
            if what == "killed":
                told(f"the program left processes behind, which were killed: {' '.join(rest)}")
            elif what == "left":
                told(f"a process of the run has outlived it: pid {rest[0]} ({' '.join(rest[1:])})")
            elif what == "like" and not marked:
                text = f"a process of the run, or of a run {run_id} of another Apsis, has outlived it"
                told(f"{text}: pid {rest[0]} ({' '.join(rest[1:])})")

    Aside(agents, conn_id, argv, swept).start()
