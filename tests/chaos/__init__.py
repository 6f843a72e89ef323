"""A checker of the whole installation: real server, real agents, real programs, and a nemesis.

    program.py    what jobs run: appends to a ledger, synced, at its start and at its end
    ledger.py     reads the ledger
    proxy.py      between agents and server: cuts connections, or lets them hang half-open
    world.py      the processes: server, agents, proxy, clock, disk
    launch.py     starts the server with short keepalives, and with a planted defect if told to
    nemesis.py    what goes wrong and when, from a seed
    checker.py    compares ledger, database and the occurrences that schedules should have had
    campaign.py   all of it together; `python -m chaos --seconds 60 --seed 1` from tests/

A run of it ends with a verdict in numbers, all of which must be 0. They are defined in checker.py.
"""
