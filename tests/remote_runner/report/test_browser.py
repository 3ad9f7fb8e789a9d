"""The page in a real browser: every view, by keyboard and pointer, light and dark, with 2, 100 and 1,000 instances."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from remote_runner.report.write import write_report
from tests.chromium import Page, browser
from tests.needs import need
from tests.remote_runner.report.made_run import make_run

VIEWS = ("timeline", "outcome", "steps", "barriers", "metrics", "usage", "hosts", "truth", "links", "provenance")
CHARTS = 13  # timeline, steps, arrivals, links, and three for each of metrics, usage and hosts
MOST_WORK_S = 3.0


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library is made once."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    need("chromium")
    with browser(tmp_path_factory.mktemp("profile")) as page:
        page.size(1300, 900)
        yield page


@pytest.fixture
def page(chromium: Page) -> Iterator[Page]:
    """The browser, which at the end has nothing to complain of and asked nobody for anything."""
    chromium.dark(False)
    chromium.problems.clear()
    chromium.requests.clear()
    yield chromium
    assert chromium.problems == []
    assert chromium.requests == []


@pytest.fixture(scope="module")
def hundred(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Path:
    """The report of a hundred instances, four of which failed."""
    directory = tmp_path_factory.mktemp("hundred")
    write_report([make_run(directory / "run", 100, 5, failing=4)], directory / "report.html", cache)
    return directory / "report.html"


def ink(page: Page, selector: str) -> int:
    """How many different colours a canvas shows; an empty one shows one."""
    found: int = page.value(
        f"""(() => {{
            const canvas = document.querySelector("{selector} canvas");
            const data = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
            const seen = new Set();
            for (let at = 0; at < data.length; at += 4) seen.add(data[at] << 16 | data[at + 1] << 8 | data[at + 2]);
            return seen.size;
        }})()"""
    )
    return found


@pytest.mark.parametrize(("instances", "hosts", "most_bytes"), [(2, 2, 2e6), (100, 5, 2e6), (1000, 20, 10e6)])
def test_every_view_is_drawn(
    page: Page, tmp_path: Path, cache: Path, instances: int, hosts: int, most_bytes: float
) -> None:
    run = make_run(tmp_path / "run", instances, hosts, failing=1, seconds=20)
    write_report([run], run / "report.html", cache)
    assert (run / "report.html").stat().st_size < most_bytes
    page.command("Performance.enable", timeDomain="threadTicks")
    page.open(run / "report.html")
    work = {one["name"]: one["value"] for one in page.command("Performance.getMetrics")["metrics"]}
    assert work["TaskDuration"] < MOST_WORK_S
    assert page.value("[...document.querySelectorAll('section')].map(one => one.id)") == ["failures", *VIEWS]
    assert page.value("document.querySelectorAll('canvas').length") == CHARTS
    for view in ("timeline", "steps", "barriers", "metrics", "usage", "hosts", "links"):
        assert ink(page, f"#{view}") > 5, view
    assert f"{instances - 1} of {instances} ok" in page.value("document.body.innerText")
    assert page.value("document.querySelector('#timeline [role=status]').textContent") == f"{instances} instances"
    truth = page.value("document.querySelector('#truth').innerText")
    assert "clock uncertainty\t400 µs" in truth
    assert "memory\t4 GB" in truth
    dots = page.value("document.querySelector('#metrics .note').innerText")
    assert ("with the least and the greatest" in dots) == (instances > 300)


def test_it_is_dark_where_the_system_is(page: Page, hundred: Path) -> None:
    brightness = "getComputedStyle(document.body).backgroundColor.match(/\\d+/g).reduce((sum, one) => sum + +one, 0)"
    page.open(hundred)
    light = page.value(brightness)
    page.dark(True)
    page.until("document.documentElement.dataset.theme === 'dark' && document.documentElement.dataset.drawn === 'true'")
    assert page.value(brightness) < 200 < light
    assert ink(page, "#timeline") > 5


def test_the_timeline_goes_by_keyboard(page: Page, hundred: Path) -> None:
    page.open(hundred)
    whole = page.value("reportZoom()")
    page.value("document.querySelector('.timeline').focus()")
    page.key("+", "+")
    closer = page.value("reportZoom()")
    assert closer["x1"] - closer["x0"] == pytest.approx((whole["x1"] - whole["x0"]) / 2)
    page.key("ArrowRight")
    assert page.value("reportZoom()")["x0"] > closer["x0"]
    page.key("PageUp")
    page.key("ArrowDown")
    rows = page.value("reportZoom()")
    assert rows["y0"] > 0
    assert rows["y1"] - rows["y0"] == 50
    page.key("0", "0")
    assert page.value("reportZoom()") == whole
    page.key("Tab")
    assert page.value("document.activeElement !== document.body")


def test_the_timeline_is_filtered_and_dragged(page: Page, hundred: Path) -> None:
    page.open(hundred)
    status = "document.querySelector('#timeline [role=status]').textContent"
    page.value("[...document.querySelectorAll('#timeline select')][2].focus()")
    page.value(
        """(() => {
            const select = [...document.querySelectorAll('#timeline select')][2];
            select.value = 'failed';
            select.dispatchEvent(new Event('change'));
        })()"""
    )
    assert page.value(status) == "4 of 100 instances"
    before = page.value("reportZoom()")
    left, top, width = page.value(
        """(() => {
            document.querySelector('.timeline').scrollIntoView();
            const box = document.querySelector('.timeline canvas').getBoundingClientRect();
            return [box.left, box.top, box.width];
        })()"""
    )
    page.mouse("mousePressed", left + width * 0.4, top + 120, clickCount=1)
    page.mouse("mouseMoved", left + width * 0.6, top + 122)
    page.mouse("mouseReleased", left + width * 0.6, top + 122, clickCount=1)
    after = page.value("reportZoom()")
    assert before["x0"] < after["x0"] < after["x1"] < before["x1"]


def test_instances_have_a_table(page: Page, hundred: Path) -> None:
    page.open(hundred)
    page.value("document.querySelector('#timeline summary:not(.vega-embed summary)').click()")
    page.until("document.querySelectorAll('#timeline details:not(.vega-embed details) tbody tr').length === 100")


def test_the_inventory_has_a_column_for_each_host(page: Page, hundred: Path) -> None:
    page.open(hundred)
    page.value("document.querySelector('#provenance summary').click()")
    words = page.value("document.querySelector('#provenance').innerText")
    hosts = [f"host-{number}" for number in range(5)]
    for line in (hosts, ["slots", *["2"] * 5], ["outputs limit", *["1 GB"] * 5], ["spread", "round"]):
        assert "\t".join(line) in words
    assert "job" not in words


def test_what_is_lacking_is_said(page: Page, tmp_path: Path, cache: Path) -> None:
    run = make_run(tmp_path / "run", 3, 1, bare=True)
    (run / "run.json").unlink()
    write_report([run], run / "report.html", cache)
    page.open(run / "report.html")
    words = page.value("document.body.innerText")
    for said in (
        "There is no run.json", "told no stages", "is not recorded", "wrote no metrics", "not sampled",
        "hosts were not sampled", "were not recorded", "were not measured",
    ):  # fmt: skip
        assert said in words


def test_several_runs_are_compared_and_each_can_be_seen(page: Page, tmp_path: Path, cache: Path) -> None:
    runs = [make_run(tmp_path / name, 40, 2, factor=factor, seed=at) for at, (name, factor) in enumerate(
        (("first", 1.0), ("second", 1.5)))]  # fmt: skip
    write_report(runs, tmp_path / "report.html", cache)
    page.open(tmp_path / "report.html")
    words = page.value("document.querySelector('#comparison').innerText")
    assert "more than noise" in words
    assert re.search(r"\t[\d.]+ ms \([\d.]+ to [\d.]+ ms\)\t", words)
    assert ink(page, "#comparison") > 5
    page.value(
        """(() => {
            const select = document.querySelector('header select');
            select.value = 1;
            select.dispatchEvent(new Event('change'));
        })()"""
    )
    page.until("document.documentElement.dataset.drawn === 'true'")
    assert "run second" in page.value("document.querySelector('header').innerText")
