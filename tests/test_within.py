"""Lines of outputs and texts in them, by position."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlencode

import pytest
from installation import PROGRAM, Installation

from apsislib.api import within


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    site = Installation(tmp_path_factory.mktemp("site"), {"noop": PROGRAM}).start()
    yield site
    site.stop()


@pytest.fixture(autouse=True)
def _hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """No time at all for one answer: each comes in as many pieces as it can."""
    monkeypatch.setattr(within, "BUDGET", 0.0)
    monkeypatch.setattr(within, "STRIDE", 1000)


def printed(site: Installation, data: bytes) -> str:
    run_id = site.make("noop")["run_id"]
    step = 100_000
    site.print(run_id, [data[at : at + step] for at in range(0, len(data), step)])
    return f"/api/v1/runs/{run_id}/output/output"


def pieces(site: Installation, path: str, **query: Any) -> Iterator[Any]:
    while True:
        answer = site.get(f"{path}?{urlencode(query)}")
        assert answer.status_code == 200, answer.text
        found = answer.json()
        yield found
        if found["next"] is None:
            return
        query["start"] = found["next"]


def test_lines_are_counted_stretch_by_stretch(site: Installation) -> None:
    chance = random.Random(7)
    data = b"".join(b"x" * chance.randrange(300) + b"\n" for _ in range(200)) + b"unfinished"
    address = printed(site, data)
    found = list(pieces(site, f"{address}/lines"))
    counts = [count for piece in found for count in piece["counts"]]
    assert counts == [data[at : at + 1000].count(b"\n") for at in range(0, len(data), 1000)]
    assert len(found) == len(counts) > 20
    assert {(piece["length"], piece["stride"]) for piece in found} == {(len(data), 1000)}
    assert site.get(f"{address}/lines?start=17").status_code == 400
    assert site.get(f"{address}/lines?start=99999000").json()["counts"] == []


def test_every_match_is_found_once_also_where_stretches_meet(site: Installation) -> None:
    chance = random.Random(11)
    data = bytearray(chance.choices(b"ab\n", k=20_000))
    for at in (0, 998, 999, 1000, 5996, 10_500, 19_994):
        data[at : at + 6] = b"Needle"
    whole = bytes(data)
    address = printed(site, whole)
    # 998 was overwritten by 999, and that by 1000.
    ends = [at for at in range(len(whole)) if whole[at : at + 6] == b"Needle"]
    assert len(ends) == 5
    found = [m for piece in pieces(site, f"{address}/search", q="nEEDLE") for m in piece["matches"]]
    assert found == [[at, 6] for at in ends]
    back = [m for piece in pieces(site, f"{address}/search", q="needle", back=True) for m in piece["matches"]]
    assert back == found[::-1]
    one = [m for p in pieces(site, f"{address}/search", q="needle", limit=1) for m in p["matches"]]
    assert one == found
    one = [m for p in pieces(site, f"{address}/search", q="needle", limit=1, back=True) for m in p["matches"]]
    assert one == back
    assert [p["matches"] for p in pieces(site, f"{address}/search", q="needle", case=True)] == [[]] * 20
    tail = site.get(f"{address}/search?q=needle&start=19994").json()
    assert tail["matches"] == [[19_994, 6]] and tail["next"] is None


def test_many_matches_in_one_stretch_come_in_order_and_once(site: Installation) -> None:
    address = printed(site, b"aa" * 700)
    for back in (False, True):
        found = [
            m[0] for p in pieces(site, f"{address}/search", q="a", limit=90, back=back) for m in p["matches"]
        ]
        assert found == list(range(1400))[:: -1 if back else 1]


@pytest.mark.parametrize("text", ["grüße", "GRÜSSE ", "Привет", "ΣΊΣΥΦΟΣ", "ß"])
def test_letters_beyond_ascii_are_found_in_either_case(site: Installation, text: str) -> None:
    said = "x" * 995 + f" {text} {text.upper()} {text.lower()}"
    data = said.encode()
    found = [m for p in pieces(site, f"{printed(site, data)}/search", q=text.lower()) for m in p["matches"]]
    starts = [at for at, _ in found]
    for form in (text, text.upper(), text.lower()):
        assert data.find(form.encode()) in starts
    for at, size in found:
        assert data[at : at + size].decode().upper() == text.upper()


def test_what_is_not_there_or_not_meant_is_refused(site: Installation) -> None:
    address = printed(site, b"x")
    for query in ("", "?q=", f"?q={'x' * 1001}", "?q=x&start=-1", "?q=x&limit=0", "?q=x&back=maybe"):
        assert site.get(f"{address}/search{query}").status_code == 400, query
    for name in ("lines", "search?q=x"):
        assert site.get(f"/api/v1/runs/r999999/output/output/{name}").status_code == 404
        assert site.get(f"/api/v1/runs/x/output/output/{name}").status_code == 404
