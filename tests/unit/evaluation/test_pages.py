"""Pages read with a parser of the standard library, and in a browser where there is one."""

from __future__ import annotations

import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest

from ctx_export.evaluation.charts import needle_chart, perplexity_chart
from ctx_export.evaluation.pages import needle_page, perplexity_page
from ctx_export.evaluation.report_files import save
from tests.unit.evaluation.reports import needle_report, perplexity_report

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


class Page(HTMLParser):
    """Texts and titles of cells, and every address that the page would load."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.cells: list[list[str]] = []
        self.titles: list[str] = []
        self.colours: list[str] = []
        self.loaded: list[str] = []
        self._in = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag == "tr":
            self.cells.append([])
        if tag in ("td", "th"):
            self._in = tag
            self.cells[-1].append("")
        if tag == "td" and given.get("title"):
            self.titles.append(str(given["title"]))
            self.colours.append(re.findall(r"background:(#\w+)", str(given["style"]))[0])
        if tag in ("script", "link", "img", "iframe"):
            self.loaded.append(f"{tag} {attrs}")
        self.loaded += [str(value) for key, value in attrs if key in ("src", "srcset")]

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th"):
            self._in = ""

    def handle_data(self, data: str) -> None:
        if self._in:
            self.cells[-1][-1] += data


def test_a_heat_map_has_a_cell_per_place_that_tells_its_answers():
    page = Page(needle_page(needle_report()))
    first = [["depth", "1k", "2k"], ["0 %", "100", "100"], ["100 %", "100", "100"]]
    second = [["depth", "1k", "2k"], ["0 %", "100", "50"], ["100 %", "100", "50"]]
    assert page.cells == first + second
    assert len(page.titles) == 8
    assert page.titles[-1] == (
        "2048 tokens, depth 100 %: 1 of 2 found, mean log-probability -1.00"
    )
    # matplotlib's cividis at its middle and its end.
    assert page.colours[-2:] == ["#fee838", "#7d7c78"]


def test_a_perplexity_page_has_both_tables_and_the_curve():
    text = perplexity_page(perplexity_report())
    page = Page(text)
    assert page.cells == [
        ["tokens", "32", "64"],
        ["<a>", "4.000 ± 0.250", "5.000 ± 0.250"],
        ["b", "40.000 ± 0.250", ""],
        ["positions", "1–63"],
        ["<a>", "6.000 ± 0.500"],
    ]
    assert text.count("<svg") == 1


PAGES = {
    "needle": lambda: needle_page(needle_report()),
    "perplexity": lambda: perplexity_page(perplexity_report()),
}


@pytest.mark.parametrize("made", PAGES.values(), ids=PAGES)
def test_a_page_loads_nothing_and_escapes_names(made):
    text = made()
    assert Page(text).loaded == [] and "@import" not in text and "url(http" not in text
    assert "&lt;a&gt;" in text and "<a>" not in text
    assert "&lt;text&gt; &amp; more.txt, 4321 tokens" in text
    assert made() == text


def test_files_of_a_report_are_the_same_every_time(tmp_path):
    report = perplexity_report()
    for folder in ("one", "two"):
        save(
            tmp_path / folder,
            "perplexity",
            report.to_json(),
            lambda: perplexity_chart(report),
            lambda: perplexity_page(report),
        )
    for name in ("perplexity.json", "perplexity.png", "perplexity.html"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


@pytest.mark.parametrize("subjects", [1, 2, 3, 7])
def test_a_heat_map_picture_has_a_panel_per_subject(subjects):
    from dataclasses import replace

    report = needle_report()
    cells = [
        replace(cell, subject=f"s{index}") for index in range(subjects) for cell in report.of("b")
    ]
    figure = needle_chart(replace(report, cells=tuple(cells)))
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert [title for title in titles if title] == [f"s{index}" for index in range(subjects)]


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on PATH")
@pytest.mark.parametrize("name", ["needle", "perplexity"])
def test_a_browser_shows_the_page(tmp_path: Path, name: str):
    path = tmp_path / f"{name}.html"
    # What the browser made of it is asked by a script that the page itself does not have.
    probe = """<script>addEventListener("load", () => {
      const cell = document.querySelector("td"), box = cell.getBoundingClientRect();
      const wide = document.documentElement.scrollWidth > innerWidth;
      document.body.dataset.found = [document.querySelectorAll("td").length, box.width > 20,
        getComputedStyle(cell).backgroundColor, wide].join(" ");
    })</script>"""
    path.write_text(PAGES[name]() + probe, encoding="utf-8")
    command = [
        str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync",
        f"--user-data-dir={tmp_path / 'profile'}", "--window-size=900,700", "--dump-dom",
        path.as_uri(),
    ]  # fmt: skip
    run = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    found = re.findall(r'data-found="([^"]*)"', run.stdout)
    expected = {
        "needle": "8 true rgb(254, 232, 56) false",
        "perplexity": "5 true rgba(0, 0, 0, 0) false",
    }
    assert found == [expected[name]]
