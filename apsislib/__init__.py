"""Everything of Apsis but its top level. Read in this order, lowest layer first:

words        errors, states
values       clock, times, calendars, dates, yamlio, templates, figures,
             systemd, orders, itself, logs
records      runs, terms (searches)
rules        schedules (cron, timetables, stops, previews), conditions, actions,
             expectations, catchup
files        jobs, config, binding
the kernel   scheduler: pure; its __init__.py names its rooms
machinery    store, feeds, wire, sockets
the engine   driver (the lock, the timer, the hands; its __init__.py says more), outside,
             reloads; upkeep; metrics, samples
edges        api, live, shapes, pages, cli, agent, localagent;
             for agents that connect: links, roster, registering, ports
             (and at the top: programs, agent_server, apsis)
the jobs     loading: those of a server, from its files; by a process of its own
by hand      offline: what operators do to the database file; moving: from other schedulers

tests/test_layers.py holds the table of who may import whom.
"""
