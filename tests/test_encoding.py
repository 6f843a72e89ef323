"""What spares bytes on the way: gzip, tags, parts of outputs."""

from __future__ import annotations

import gzip
import json
import socket

import pytest
import requests
from installation import PROGRAM, SLOW, Installation

from apsislib.api.encoding import accepts_gzip

JOBS = {f"job{number}": PROGRAM for number in range(40)} | {"slow": SLOW}
TEXT = b"a line of text that is like the others\n" * 100_000


@pytest.fixture(scope="module")
def output(site: Installation) -> str:
    run_id = site.make("slow")["run_id"]
    site.print(run_id, [TEXT])
    return f"/api/v1/runs/{run_id}/output/output"


@pytest.mark.parametrize(
    ("header", "accepted"),
    [
        ("gzip", True),
        ("br, GZIP;q=0.5", True),
        ("gzip;q=0", False),
        ("gzip; q=0.000, *", False),
        ("*", True),
        ("identity, *;q=0", False),
        ("", False),
        ("x-gzip", False),
    ],
)
def test_gzip_is_sent_only_to_who_says_that_it_reads_it(header: str, accepted: bool) -> None:
    assert accepts_gzip(header) is accepted


@pytest.mark.parametrize("path", ["/api/v1/jobs", "/api/v1/openapi.json", "/static/lib/live.js"])
def test_large_answers_come_in_gzip(site: Installation, path: str) -> None:
    plain = site.get(path, headers={"accept-encoding": "identity"})
    packed = requests.get(site.url + path, headers={"accept-encoding": "gzip"}, stream=True, timeout=60)
    raw = packed.raw.read(decode_content=False)
    assert packed.headers["content-encoding"] == "gzip" and gzip.decompress(raw) == plain.content
    assert packed.headers["content-length"] == str(len(raw)) and len(raw) < len(plain.content) / 2
    assert "content-encoding" not in plain.headers
    assert plain.headers["vary"] == packed.headers["vary"] == "accept-encoding"
    assert "content-encoding" not in site.get("/api/v1/alive", headers={"accept-encoding": "gzip"}).headers


def test_a_large_output_comes_in_gzip_as_it_is_read(site: Installation, output: str) -> None:
    packed = site.get(output, headers={"accept-encoding": "gzip"})
    assert packed.headers["transfer-encoding"] == "chunked" and packed.content == TEXT
    plain = site.get(output, headers={"accept-encoding": "identity"})
    assert plain.headers["content-length"] == str(len(TEXT)) and plain.content == TEXT
    part = site.get(output, headers={"accept-encoding": "gzip", "range": "bytes=5-9"})
    assert (part.status_code, part.content) == (206, TEXT[5:10])
    assert "content-encoding" not in part.headers
    # The connection goes on after the last chunk.
    assert site.get("/api/v1/alive").status_code == 200


def test_a_client_of_http_1_0_gets_no_chunks(site: Installation, output: str) -> None:
    with socket.create_connection(("127.0.0.1", site.port), 10) as sock:
        sock.sendall(f"GET {output} HTTP/1.0\r\nAccept-Encoding: gzip\r\n\r\n".encode())
        answer = b"".join(iter(lambda: sock.recv(65536), b""))
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"chunked" not in head and b"gzip" not in head and body == TEXT


@pytest.mark.parametrize("path", ["/api/v1/jobs", "/api/v1/jobs/job1", "/api/v1/openapi.json", "/"])
@pytest.mark.parametrize("encoding", ["gzip", "identity"])
def test_what_a_client_has_is_not_sent_again(site: Installation, path: str, encoding: str) -> None:
    first = site.get(path, headers={"accept-encoding": encoding})
    again = site.get(path, headers={"if-none-match": f'"other", {first.headers["etag"]}'})
    assert (again.status_code, again.content) == (304, b"")
    assert again.headers["etag"].removeprefix("W/") == first.headers["etag"].removeprefix("W/")
    assert site.get(path, headers={"if-none-match": '"other"'}).content == first.content


def test_a_reload_makes_the_tag_another(tmp_path_factory: pytest.TempPathFactory) -> None:
    site = Installation(tmp_path_factory.mktemp("reloaded"), {"a": PROGRAM}).start()
    try:
        tag = site.get("/api/v1/jobs").headers["etag"]
        site.write("b", PROGRAM)
        site.post("/api/control/reload_jobs")
        answer = site.get("/api/v1/jobs", headers={"if-none-match": tag})
        assert answer.status_code == 200 and len(json.loads(answer.content)) == 2
    finally:
        site.stop()


def test_a_download_goes_on_if_the_output_is_the_same(site: Installation) -> None:
    run_id = site.make("slow")["run_id"]
    site.print(run_id, [b"0123456789"])
    url = f"{site.url}/api/v1/runs/{run_id}/output/output"
    first = requests.get(url, timeout=60)
    tag = first.headers["etag"]
    assert requests.get(url, headers={"if-none-match": tag}, timeout=60).status_code == 304
    part = requests.get(url, headers={"range": "bytes=4-", "if-range": tag}, timeout=60)
    assert (part.status_code, part.content) == (206, b"456789")
    site.print(run_id, [b"abc"], at=10)
    whole = requests.get(url, headers={"range": "bytes=4-", "if-range": tag}, timeout=60)
    assert (whole.status_code, whole.content) == (200, b"0123456789abc")
    assert requests.get(url, headers={"if-none-match": tag}, timeout=60).status_code == 200
