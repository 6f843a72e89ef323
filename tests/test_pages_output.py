"""The output of a run in a real browser: colours, search, numbers, windows."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator

import pytest
from browsing import HOSTILE, watched
from installation import PROGRAM, SLOW, Installation
from playwright.sync_api import Browser, Locator, Page, expect


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    site = Installation(tmp_path_factory.mktemp("site"), {"noop": PROGRAM, "slow": SLOW}).start()
    yield site
    site.stop()


def printed(site: Installation, page: Page, data: bytes, job: str = "noop") -> Locator:
    run_id = site.make(job)["run_id"]
    site.print(run_id, [data[at : at + 2**20] for at in range(0, len(data), 2**20)])
    page.goto(f"/runs/{run_id}")
    lines = page.locator(".output .line")
    expect(lines.first).to_be_visible()
    return lines


def test_what_programs_write_over_and_paint_is_rendered_so(site: Installation, page: Page) -> None:
    text = (
        "plain\n"
        "10 %\r 50 %\r100 % \x1b[Kdone\n"
        "long line here\rshort\x1b[K\n"
        "ab\b\bXY\x1b[3Gz\x1b[5G!\n"
        "\x1b[1;31mred\x1b[22m thin\x1b[0m \x1b[38;2;1;2;3mrgb\x1b[m \x1b[48;5;21mback\x1b[0m\n"
        "\x1b[33mgoes on\n"
        "in the next line\x1b[0m \x1b]8;;http://x\x07link\x1b]8;;\x07 \x1b]0;title\x1b\\\n"
        "\x1b(B\x1b[?25lhidden\x1b[2J\x07 \x01\x7f\ttab\r\n"
        f"{HOSTILE}\n"
        "\n"
        "end without newline"
    )
    lines = printed(site, page, text.encode())
    expect(lines).to_have_text(
        [
            "plain",
            "100 % done",
            "short",
            "XYz !",
            "red thin rgb back",
            "goes on",
            "in the next line link ",
            " \u2401\u2421\ttab",
            HOSTILE,
            "\u200b",
            "end without newline",
        ],
        use_inner_text=False,
    )
    red = lines.nth(4).locator("span").first
    assert red.evaluate("n => [n.textContent, n.className, n.style.getPropertyValue('--fg')]") == [
        "red",
        "bold fg",
        "#c91b00",
    ]
    styles = (
        lines.nth(4)
        .locator("span")
        .evaluate_all(
            "all => all.map((n) => n.style.getPropertyValue('--fg') || n.style.getPropertyValue('--bg'))"
        )
    )
    assert styles == ["#c91b00", "#c91b00", "#010203", "#0000ff"]
    for n in (5, 6):
        assert (
            lines.nth(n).locator("span").first.evaluate("n => n.style.getPropertyValue('--fg')") == "#b58900"
        )
    assert lines.nth(10).get_attribute("data-n") == "11"


def test_whatever_pieces_an_output_comes_in_it_reads_the_same(site: Installation, page: Page) -> None:
    """Letters of several bytes, lines and escape sequences cut anywhere, while the page follows."""
    chance = random.Random(5)
    words = ["grüße", "東京", "🚀🚀", "\x1b[32mgreen\x1b[0m", "x" * 50, "", "\ta", "é" * 30]
    said = "".join(
        " ".join(chance.choices(words, k=3)) + chance.choice(["\n", "\r\n", " "]) for _ in range(150)
    )
    data = said.encode()
    run_id = site.make("slow")["run_id"]
    page.goto(f"/runs/{run_id}")
    expect(page.locator(".output")).to_contain_text("Nothing printed yet.")
    at = 0
    while at < len(data):
        piece = data[at : at + chance.randrange(1, 200)]
        site.print(run_id, [piece], at=at)
        at += len(piece)
    plain = re.sub(r"\x1b\[\d+m", "", said.replace("\r\n", "\n")).split("\n")
    expect(page.locator(".output .line").last).to_have_text(plain[-1] or plain[-2], use_inner_text=False)
    found = [text.replace("\u200b", "") for text in page.locator(".output .line").all_text_contents()]
    assert found == (plain if plain[-1] else plain[:-1])
    numbers = page.locator(".output .line").evaluate_all("all => all.map((n) => Number(n.dataset.n))")
    assert numbers == list(range(1, len(found) + 1))
    site.post(f"/api/v1/runs/{run_id}/stop")


LINES = 60_000
LARGE = b"".join(
    b"line %06d of a large output, in which there is little to see\n" % n for n in range(1, LINES + 1)
)


@pytest.fixture(scope="module")
def large(browser: Browser, site: Installation) -> Iterator[Page]:
    run_id = site.make("noop")["run_id"]
    site.print(run_id, [LARGE[at : at + 2**20] for at in range(0, len(LARGE), 2**20)])
    with watched(browser, site.url, accept_downloads=True) as page:
        page.goto(f"/runs/{run_id}")
        yield page


def at_line(page: Page, number: int) -> Locator:
    return page.locator(f'.output .line[data-n="{number}"]')


def test_a_large_output_opens_at_its_end_and_is_walked_through_a_window(large: Page) -> None:
    page = large
    expect(at_line(page, LINES)).to_contain_text(f"line {LINES:06}")
    expect(page.locator(".place")).to_contain_text(f"of {LINES:,} · 3.")
    pane = page.locator(".output")
    for _ in range(12):  # up, further than the window reaches
        pane.evaluate("n => { n.scrollTop = 0; }")
        page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    first = page.locator(".output .line").first
    expect(first).to_have_attribute("data-n", re.compile(r"^\d+$"))
    number = int(first.get_attribute("data-n") or 0)
    assert 0 < number < LINES - 12_000
    expect(first).to_contain_text(f"line {number:06}")
    shown = page.locator(".output .line").evaluate_all(
        "all => all.map((n) => [Number(n.dataset.n), n.textContent])"
    )
    assert shown == [
        [number + n, f"line {number + n:06} of a large output, in which there is little to see"]
        for n in range(len(shown))
    ]
    assert len(shown) < 15_000
    page.get_by_role("button", name="Top").click()
    expect(at_line(page, 1)).to_be_visible()
    page.get_by_role("button", name="End", exact=True).click()
    expect(at_line(page, LINES)).to_be_visible()
    page.get_by_label("Position in the output").fill("500")
    expect(page.locator(".place")).to_contain_text(re.compile(r"line (29,9|30,0)"))


def test_a_line_is_gone_to_by_its_number(large: Page) -> None:
    page = large
    for number in (47_777, 1, LINES):
        page.get_by_label("Go to line").fill(f"{number:,}")
        page.keyboard.press("Enter")
        expect(page.locator(".output .line.found")).to_contain_text(f"line {number:06}")
        expect(page.locator(".output .line.found")).to_have_attribute("data-n", str(number))
    page.get_by_label("Go to line").fill("nine")
    page.keyboard.press("Enter")
    expect(page.locator(".notice")).to_contain_text("no line number: nine")


def test_a_text_is_searched_for_in_all_of_it_in_either_direction(large: Page) -> None:
    page = large
    page.get_by_role("button", name="Top").click()
    expect(at_line(page, 1)).to_be_visible()
    page.keyboard.press("/")
    field = page.get_by_label("Search the output")
    expect(field).to_be_focused()
    field.fill("LINE 04999")
    found = page.locator(".output .line.found")
    page.keyboard.press("Enter")
    expect(found).to_contain_text("line 049990")
    expect(found.locator("mark")).to_have_text("line 04999")
    expect(found).to_have_attribute("data-n", "49990")
    page.keyboard.press("Enter")
    expect(found).to_contain_text("line 049991")
    page.keyboard.press("Shift+Enter")
    expect(found).to_contain_text("line 049990")
    page.keyboard.press("Shift+Enter")
    expect(found).to_contain_text("line 049999")
    expect(page.locator(".said")).to_have_text("from the end again")
    page.keyboard.press("Escape")
    page.keyboard.press("n")
    expect(found).to_contain_text("line 049990")
    expect(page.locator(".said")).to_have_text("from the beginning again")
    field.fill("nowhere to be seen")
    page.keyboard.press("Enter")
    expect(page.locator(".said")).to_have_text("not found")


def test_wrapping_and_numbers_are_chosen_once(large: Page) -> None:
    page = large
    wrap = page.get_by_role("button", name="Wrap")
    expect(wrap).to_have_attribute("aria-pressed", "true")
    page.locator(".output").focus()
    page.keyboard.press("w")
    expect(wrap).to_have_attribute("aria-pressed", "false")
    page.get_by_role("button", name="Numbers").click()
    page.reload()
    expect(wrap).to_have_attribute("aria-pressed", "false")
    expect(page.locator(".output")).not_to_have_class(re.compile("numbered"))
    expect(page.locator(".output .line").last).to_contain_text(f"line {LINES:06}")
    page.get_by_role("button", name="Numbers").click()
    expect(at_line(page, LINES)).to_be_visible()


def test_all_of_an_output_can_be_downloaded(large: Page) -> None:
    with large.expect_download() as download:
        large.get_by_role("link", name="Download").click()
    assert download.value.path().read_bytes() == LARGE
    assert re.fullmatch(r"r\d+-output\.txt", download.value.suggested_filename)


def test_who_follows_stays_at_the_end_and_who_reads_is_left_in_peace(site: Installation, page: Page) -> None:
    run_id = site.make("slow")["run_id"]
    at = 0

    def say(first: int, count: int) -> None:
        nonlocal at
        data = b"".join(b"line %06d\n" % n for n in range(first, first + count))
        site.print(run_id, [data], at=at)
        at += len(data)

    say(1, 500)
    page.goto(f"/runs/{run_id}")
    pane, follow = page.locator(".output"), page.get_by_role("button", name="Follow")
    expect(at_line(page, 500)).to_be_visible()
    expect(follow).to_have_attribute("aria-pressed", "true")
    say(501, 500)
    expect(at_line(page, 1000)).to_be_in_viewport()
    pane.hover()
    page.mouse.wheel(0, -3000)
    expect(follow).to_have_attribute("aria-pressed", "false")
    before = pane.evaluate("n => n.scrollTop")
    say(1001, 2000)
    expect(page.locator(".place")).to_contain_text("35.2 KiB")
    assert pane.evaluate("n => n.scrollTop") == before
    page.locator("body").click(position={"x": 5, "y": 300})
    page.keyboard.press("f")
    expect(at_line(page, 3000)).to_be_in_viewport()
    say(3001, 10)
    expect(at_line(page, 3010)).to_be_in_viewport()
    site.post(f"/api/v1/runs/{run_id}/stop")
    expect(follow).to_be_hidden()


def test_lines_without_end_and_progress_without_end_stay_bounded(site: Installation, page: Page) -> None:
    lines = printed(
        site, page, b"x" * 300_000 + b"\nshort\n" + b"".join(b"\r%5d" % n for n in range(40_000)) + b"\n"
    )
    expect(lines.last).to_have_text("39999")
    assert (
        max(page.locator(".output .line").evaluate_all("all => all.map((n) => n.textContent.length)"))
        <= 65_536
    )
    page.get_by_label("Go to line").fill("2")
    page.keyboard.press("Enter")
    expect(page.locator(".output .line.found")).to_have_text("short")
    expect(page.locator(".output .line.found")).to_have_attribute("data-n", "2")
