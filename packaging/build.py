"""Makes what is handed out: a wheel, and apsis.pyz, one file with all that it needs but Python.

    python packaging/build.py DIRECTORY      by a Python that has what the tests need

The packages in apsis.pyz are copied from the Python that runs this, so they are those that the tests ran
with. Of those with compiled parts only what is Python is taken: they have both, and are slower so.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from importlib.metadata import Distribution, distribution, version
from pathlib import Path
from zipfile import ZIP_DEFLATED, ZipFile, ZipInfo
from zoneinfo import TZPATH, available_timezones

from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parent.parent
PROJECT = "apsis-scheduler"
SOURCES = ("setup.cfg", "pyproject.toml", "README.md", "apsis.py", "agent_server.py", "programs", "apsislib")
# Packages that do without their compiled parts, as the end-to-end tests of apsis.pyz show.
PURE_TOO = {"pyyaml", "msgpack", "markupsafe"}
COMPILED = (".so", ".pyd", ".c", ".pyx", ".pxd")
# Of the installation, not of the package; some hold paths of the machine that built it.
LEFT_OUT = {"RECORD", "INSTALLER", "REQUESTED", "direct_url.json"}
DATE = (1980, 1, 1, 0, 0, 0)  # of every file, so that the same content makes the same archive


def main() -> int:
    into = Path(sys.argv[1]).absolute()
    into.mkdir(parents=True, exist_ok=True)
    wheel = make_wheel(into)
    pyz = make_pyz(wheel, into / "apsis.pyz")
    for path in (wheel, pyz):
        print(f"{path}: {path.stat().st_size / 1e6:.1f} MB")
    return 0


def make_wheel(into: Path) -> Path:
    """The wheel, built from a copy: what earlier builds have left in the tree does not get in."""
    if Version(version("setuptools")) < Version("70.1"):
        sys.exit("error: this Python's setuptools is too old to build by; make .venv/tested brings another")
    with tempfile.TemporaryDirectory() as directory:
        for name in SOURCES:
            if (ROOT / name).is_dir():
                ignored = shutil.ignore_patterns("__pycache__")
                shutil.copytree(ROOT / name, Path(directory, name), ignore=ignored)
            else:
                shutil.copy(ROOT / name, directory)
        argv = [sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check", "--no-deps"]
        argv += ["--no-build-isolation", "--wheel-dir", str(into), directory]
        subprocess.run(argv, check=True, env={"SOURCE_DATE_EPOCH": "315532800", **os.environ})
    (wheel,) = into.glob(f"{PROJECT.replace('-', '_')}-*.whl")
    return wheel


def make_pyz(wheel: Path, target: Path) -> Path:
    """The archive of everything."""
    files = {}
    with ZipFile(wheel) as ours:
        for name in ours.namelist():
            if not name.endswith("/") and Path(name).name not in LEFT_OUT:
                files[name] = ours.read(name)
    for package in needed(PROJECT):
        files |= dict(contents(package))
    files |= dict(zones())
    return write_pyz(files, wheel.name.split("-")[1], target)


def write_pyz(content: Mapping[str, bytes], version: str, target: Path) -> Path:
    """An archive that Python and any shell can run: `content`, and what unpacks it and runs its apsis.py."""
    files = {f"content/{name}": data for name, data in content.items()}
    files["content/.unpacked"] = b""
    digest = hashlib.sha256()
    for name, data in sorted(files.items()):
        digest.update(f"{name}\n{len(data)}\n".encode() + data)
    files["apsis_name.py"] = f'NAME = "apsis-{version}-{digest.hexdigest()[:16]}"\n'.encode()
    for path in (ROOT / "packaging" / "pyz").glob("*.py"):
        files[path.name] = path.read_bytes()
    with open(target, "wb") as file:
        file.write(b"#!/usr/bin/env python3\n")
        with ZipFile(file, "w", ZIP_DEFLATED) as archive:
            for name, data in sorted(files.items()):
                info = ZipInfo(name, DATE)
                info.external_attr = 0o100644 << 16
                archive.writestr(info, data, ZIP_DEFLATED)
    target.chmod(0o755)
    return target


def needed(project: str) -> list[Distribution]:
    """The installed packages that `project` needs, and those that these need."""
    found: dict[str, Distribution] = {}
    left = [project]
    while left:
        for text in distribution(left.pop()).requires or ():
            requirement = Requirement(text)
            name = requirement.name.lower()
            if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
                continue
            if name not in found:
                found[name] = distribution(name)
                left.append(name)
    return [found[name] for name in sorted(found)]


def contents(package: Distribution) -> Iterator[tuple[str, bytes]]:
    """Its files that are Python or data. Raises SystemExit: it has compiled parts, and needs them."""
    for path in package.files or ():
        if ".." in path.parts or "__pycache__" in path.parts or path.name in LEFT_OUT:
            continue
        if path.suffix in COMPILED:
            if package.name.lower() not in PURE_TOO:
                sys.exit(
                    f"error: {package.name} has a compiled part, {path}: apsis.pyz would need its Python"
                )
            continue
        yield str(path), path.read_binary()


def zones() -> Iterator[tuple[str, bytes]]:
    """The time zones of this host as the package `tzdata`, where Python looks on a host that has none.

    Such hosts are containers, mostly. Those of the host come first: its updates keep them right.
    """
    found = {}
    for name in sorted(available_timezones()):
        files = [Path(directory, name) for directory in TZPATH]
        path = next((file for file in files if file.is_file()), None)
        if path is not None:
            found[f"tzdata/zoneinfo/{name}"] = path.read_bytes()
    if "tzdata/zoneinfo/UTC" not in found:
        sys.exit("error: this host has no time zones to put into apsis.pyz; install tzdata")
    directories = {str(parent) for name in found for parent in Path(name).parents[:-1]}
    yield from found.items()
    yield from ((f"{directory}/__init__.py", b"") for directory in sorted(directories))


if __name__ == "__main__":
    sys.exit(main())
