"""What the jobs of a campaign run: `python -I -S program.py LEDGER OCCURRENCE SECONDS LINES CODE WIDTH`.

It appends a line to the ledger and syncs it as its first and as its last act, and prints numbered lines
in between, each with WIDTH characters more. On SIGTERM it ends at once, in good order; with the CODE
`deaf` it takes no notice. So whatever happens to server and agents, the ledger says which programs ran,
when (by a clock that nobody sets), by whose hand, and to which end.

    begin RUN_ID OCCURRENCE AGENT PID BOOT
    end   RUN_ID OCCURRENCE AGENT PID BOOT CODE LINES      CODE: exit code, or `stopped`
"""

import os
import signal
import sys
import time

ledger, occurrence, seconds, lines, code, width = sys.argv[1:7]
descriptor = os.open(ledger, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
run_id = os.environ["APSIS_RUN_ID"]
agent = os.environ["CHAOS_AGENT"]
rest = b" " + b"x" * int(width) if int(width) else b""
printed = 0


def say(*words: object) -> None:
    boot = time.clock_gettime(time.CLOCK_BOOTTIME)
    what, *more = words
    text = " ".join(map(str, (what, run_id, occurrence, agent, os.getpid(), f"{boot:.3f}", *more)))
    os.write(descriptor, text.encode() + b"\n")  # one write: lines of several programs do not mix
    os.fsync(descriptor)


def stopped(*_: object) -> None:
    # Not in the middle of a line that is counted as printed.
    say("end", "stopped", printed)
    os._exit(0)


deaf = code == "deaf"
signal.signal(signal.SIGTERM, signal.SIG_IGN if deaf else stopped)
say("begin")
for number in range(int(lines)):
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    os.write(1, b"%s %d%s\n" % (run_id.encode(), number, rest))
    printed += 1
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    time.sleep(float(seconds) / int(lines))
signal.signal(signal.SIGTERM, signal.SIG_IGN)
code = "0" if deaf else code
say("end", code, printed)
os._exit(int(code))
