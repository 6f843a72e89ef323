"""Which module may import which: the architecture, as a table.

A module imports from lower layers or floors, never upwards, and each package from outside has one
door. A file without a row here fails the test: decide where it belongs first.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pytest

from apsislib.runs import Run

ROOT = Path(__file__).parent.parent
OURS = ("apsis", "agent_server", "programs", "apsislib")

# Module or package -> its floor. Inside a package its modules may import each other.
FLOORS = {
    "apsislib": 0,
    # words
    "apsislib.errors": 0,
    "apsislib.states": 0,
    # values
    "apsislib.clock": 10,
    "apsislib.times": 10,
    "apsislib.yamlio": 10,
    "apsislib.meter": 10,
    "apsislib.figures": 10,
    "apsislib.logs": 10,
    "apsislib.systemd": 10,
    "apsislib.orders": 10,
    "apsislib.itself": 10,
    "apsislib.classes": 10,
    "apsislib.calendars": 11,
    "apsislib.dateformat": 11,
    "apsislib.dates": 12,
    "apsislib.templates": 13,
    # records and rules
    "apsislib.runs": 20,
    "apsislib.terms": 21,
    "apsislib.operations": 21,
    "apsislib.cron": 21,
    "apsislib.stops": 21,
    "apsislib.timetables": 22,
    "apsislib.schedules": 23,
    "apsislib.previews": 24,
    "apsislib.expectations": 21,
    "apsislib.catchup": 21,
    "apsislib.conditions": 21,
    "apsislib.extensions": 22,
    "apsislib.actions": 23,
    # files
    "apsislib.binding": 30,
    "apsislib.jobs": 31,
    "apsislib.config": 31,
    # the kernel
    "apsislib.scheduler": 40,
    # machinery
    "apsislib.store": 50,
    "apsislib.feeds": 50,
    "apsislib.wire": 50,
    "apsislib.sockets": 50,
    "apsislib.mail": 50,
    "apsislib.watch": 50,
    # the engine
    "apsislib.metrics": 59,
    "apsislib.outside": 59,
    "apsislib.reloads": 59,
    "apsislib.samples": 59,
    "apsislib.driver": 60,
    "apsislib.upkeep": 60,
    # edges
    "apsislib.shapes": 70,
    "apsislib.links": 70,
    "apsislib.ports": 70,
    "apsislib.registering": 70,
    "apsislib.roster": 71,
    "apsislib.localagent": 71,
    "apsislib.api": 71,
    "apsislib.live": 71,
    "apsislib.cli": 71,
    "apsislib.agent": 71,
    "programs": 71,
    "agent_server": 72,
    # above the edges
    "apsislib.loading": 72,
    "apsislib.offline": 72,
    "apsislib.moving": 73,
    # the root
    "apsis": 80,
}
# Same floor, yet allowed: (importer, imported).
ASIDE = {("apsislib.config", "apsislib.yamlio")}
# Never, though the floors would allow it.
NEVER = {
    "apsislib.scheduler": {"apsislib.clock", "apsislib.yamlio", "apsislib.templates", "apsislib.jobs"},
    "apsislib.runs": {"apsislib.clock", "apsislib.yamlio", "apsislib.templates"},
    "apsislib.conditions": {"apsislib.clock", "apsislib.yamlio", "apsislib.templates"},
    "apsislib.actions": {"apsislib.clock", "apsislib.yamlio", "apsislib.templates"},
    "apsislib.schedules": {"apsislib.clock", "apsislib.yamlio", "apsislib.templates"},
    "apsislib.store": {"apsislib.scheduler", "apsislib.driver"},
    "apsislib.api": {"apsislib.driver", "apsislib.scheduler"},
    "apsislib.live": {"apsislib.driver", "apsislib.scheduler"},
    "apsislib.cli": {"apsislib.driver", "apsislib.scheduler", "apsislib.store"},
    "apsislib.agent": {"apsislib.driver", "apsislib.scheduler", "apsislib.store", "apsislib.jobs"},
    "programs": {"apsislib.driver", "apsislib.scheduler", "apsislib.store"},
    "agent_server": {"apsislib.driver", "apsislib.scheduler", "apsislib.store"},
    "apsislib.roster": {"apsislib.driver", "apsislib.scheduler", "apsislib.store"},
}
# From outside -> the only ones that may import it.
DOORS = {
    "yaml": {"apsislib.yamlio"},
    "jinja2": {"apsislib.templates", "apsislib.meter"},
    "msgpack": {"apsislib.wire"},
    "websocket_server": {"apsislib.sockets"},
    "wsproto": {"apsislib.sockets"},
    "boto3": {"programs"},
    "botocore": {"programs"},
    "sqlite3": {"apsislib.store"},
    "smtplib": {"apsislib.mail"},
    "time": {"apsislib.clock"},
    "zoneinfo": {"apsislib.times"},
    "http.server": {"apsislib.api", "apsislib.agent"},
}
# The kernel and the rules below it name no lock, file, socket or logger.
PURE = (
    "apsislib.runs",
    "apsislib.terms",
    "apsislib.conditions",
    "apsislib.actions",
    "apsislib.schedules",
    "apsislib.cron",
)
PURE += (
    "apsislib.operations",
    "apsislib.timetables",
    "apsislib.stops",
    "apsislib.scheduler",
)
PURE += ("apsislib.errors", "apsislib.states")
IMPURE = {"threading", "sqlite3", "socket", "logging", "time", "os", "queue", "select", "subprocess"}


def modules() -> Iterator[tuple[str, Path]]:
    for path in [ROOT / "apsis.py", ROOT / "agent_server.py"]:
        yield path.stem, path
    for package in ("programs", "apsislib"):
        for path in sorted((ROOT / package).rglob("*.py")):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
            yield name, path


def row(module: str) -> str:
    """The table's entry that a module falls under: itself, or the package that holds it."""
    while module not in FLOORS and "." in module:
        module = module.rpartition(".")[0]
    return module


def imports(path: Path, module: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{module}: relative imports hide where things are"
            assert node.module is not None
            if node.module in OURS:
                yield from (f"{node.module}.{alias.name}" for alias in node.names)
            else:
                yield node.module


ALL = dict(modules())


@pytest.mark.parametrize("module", ALL)
def test_a_module_imports_only_what_lies_below_it(module: str) -> None:
    me = row(module)
    assert me in FLOORS and (me != "apsislib" or module == me), f"{module} has no row in the table of layers"
    for imported in imports(ALL[module], module):
        if imported.split(".")[0] not in OURS:
            continue
        other = row(imported)
        if other == me:
            continue
        assert other in FLOORS, f"{module} imports {imported}, which has no row"
        below = FLOORS[other] < FLOORS[me] or (me, other) in ASIDE
        assert below, f"{module} (floor {FLOORS[me]}) imports {other} (floor {FLOORS[other]})"
        assert other not in NEVER.get(me, ()), f"{module} must not know {other}"


@pytest.mark.parametrize("module", ALL)
def test_each_package_from_outside_has_one_door(module: str) -> None:
    for imported in imports(ALL[module], module):
        for package, doors in DOORS.items():
            if imported == package or imported.startswith(package + "."):
                assert row(module) in doors, f"{module} imports {imported}; its door is {', '.join(doors)}"


def test_the_door_to_aws_is_one_module() -> None:
    importers = {m for m in ALL for i in imports(ALL[m], m) if i.split(".")[0] in ("boto3", "botocore")}
    assert importers == {"programs.ecs.aws"}


@pytest.mark.parametrize("module", [m for m in ALL if row(m) in PURE])
def test_rules_and_kernel_name_nothing_of_the_machine(module: str) -> None:
    assert not IMPURE & {i.split(".")[0] for i in imports(ALL[module], module)}


@pytest.mark.parametrize("module", [m for m in ALL if m != "apsislib.clock"])
def test_nobody_asks_for_the_time_but_the_clock(module: str) -> None:
    for node in ast.walk(ast.parse(ALL[module].read_text())):
        if isinstance(node, ast.Attribute) and node.attr in ("now", "utcnow", "today"):
            name = node.value.id if isinstance(node.value, ast.Name) else ""
            assert name not in ("datetime", "date", "Date"), f"{module}:{node.lineno} asks for the time"


@pytest.mark.parametrize("module", ALL)
def test_no_copy_of_a_run_changes_what_its_key_is_made_of(module: str) -> None:
    changing = {field.name for field in fields(Run)} - {"run_id", "job_id", "args", "key"}
    for node in ast.walk(ast.parse(ALL[module].read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "but":
            named = {keyword.arg for keyword in node.keywords}
            assert named <= changing, f"{module}:{node.lineno} copies a run with other {named - changing}"


def test_every_row_of_the_table_exists() -> None:
    assert not {m for m in FLOORS if m not in ALL and not any(a.startswith(m + ".") for a in ALL)}
