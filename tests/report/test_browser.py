"""Pages in a real browser: nothing is fetched, nothing scrolls sideways, every plot has content, samples are found.

Needs a Chromium on the path, or QRPO_CHROMIUM=/path/of/one; skips without.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from qrpo_jax.stages import report
from qrpo_jax.sweep import collect
from tests.helpers import browser
from tests.helpers.browser import Browser
from tests.helpers.on_policy_records import make_on_policy_job
from tests.helpers.report_jobs import make_job
from tests.helpers.sweep_jobs import toy_config
from tests.helpers.sweep_points import NO_PLAN, SWEEP, write_points

WIDTHS, SCHEMES = (1100, 400), ("light", "dark")
# Of each plot its name, and how many different colors it has when drawn at its own size.
COLORS = """[...document.querySelectorAll("img.plot")].map((image) => {
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
  const context = canvas.getContext("2d");
  context.drawImage(image, 0, 0);
  const data = new Uint32Array(context.getImageData(0, 0, canvas.width, canvas.height).data.buffer);
  return [image.dataset.plot, new Set(data).size, image.currentSrc === image.src ? "light" : "dark", image.clientWidth];
})"""
# Elements that reach out of the window, without what scrolls inside a box of its own.
OUTSIDE = """[...document.querySelectorAll("main *")].filter((element) => {
  const box = element.getBoundingClientRect();
  return box.width > 0 && box.right > innerWidth + 1 && !element.closest(".table, pre, .title");
}).map((element) => element.outerHTML.slice(0, 100))"""


@pytest.fixture(scope="module")
def window() -> Iterator[Browser]:
    program = browser.find()
    if program is None:
        pytest.skip(f"no browser: none of {', '.join(browser.NAMES)} is on the path, and QRPO_CHROMIUM names none")
    with Browser(program) as opened:
        yield opened


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The page of a run, that of an on-policy run without held-out figures, and that of a sweep."""
    job = make_job(tmp_path_factory.mktemp("run"))
    report.run(job)
    on_policy = make_on_policy_job(tmp_path_factory.mktemp("on_policy"), "ppo")
    report.run(on_policy)
    workdir = tmp_path_factory.mktemp("sweep")
    config = toy_config(SWEEP)
    points = write_points(workdir, config)
    sweep = collect.write_page(workdir, points, collect.collect(workdir, points, NO_PLAN))
    found = {"run": job, "on_policy": on_policy}
    return {name: one.folder("report") / "report.html" for name, one in found.items()} | {"sweep": sweep}


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", ["run", "on_policy", "sweep"])
def test_a_page_fetches_nothing_fits_its_window_and_shows_every_plot(
    window: Browser, pages: dict[str, Path], name: str, width: int, scheme: str
) -> None:
    window.open(pages[name], width, scheme=scheme)
    assert window.requests == [pages[name].resolve().as_uri()] and not window.messages, (
        window.requests,
        window.messages,
    )
    wide = window.run("document.documentElement.scrollWidth")
    assert wide <= width and not window.run(OUTSIDE), (wide, window.run(OUTSIDE))
    found = window.run(COLORS)
    assert len(found) == {"run": 16, "on_policy": 13, "sweep": 3}[name], [plot for plot, *_ in found]
    for plot, colors, shown, drawn in found:
        assert colors > 20 and shown == scheme and drawn > 250, (plot, colors, shown, drawn)


def test_a_phone_shows_every_cell_of_every_table(window: Browser, pages: dict[str, Path]) -> None:
    window.open(pages["run"], 400)
    window.run('document.querySelectorAll("details").forEach((one) => { one.open = true; })')
    cells = """[...document.querySelectorAll("table")].map((table) => [
      table.querySelectorAll("td:not(.absent)").length,
      [...table.querySelectorAll("td:not(.absent)")].filter((cell) => {
        const box = cell.getBoundingClientRect();
        return box.width > 0 && box.height > 0 && box.left >= 0 && box.right <= innerWidth;
      }).length])"""
    found = window.run(cells)
    assert len(found) > 6 and all(every == seen > 0 for every, seen in found), found
    assert window.run("document.documentElement.scrollWidth") <= 400


def test_samples_are_found_by_their_words_and_by_kind(window: Browser, pages: dict[str, Path]) -> None:
    window.open(pages["run"], 1100)
    shown = '[...document.querySelectorAll(".sample")].filter((one) => one.getBoundingClientRect().height > 0).length'
    every = window.run(shown)

    def change(name: str, value: str, event: str) -> int:
        """Samples that are shown once a control has this value."""
        control = f"document.getElementById({name!r})"
        window.run(f"{control}.value = {value!r}; {control}.dispatchEvent(new Event({event!r}))")
        return int(window.run(shown))

    title = window.run('document.querySelector(".sample .title").textContent')
    number = title.split("f(2,5)=")[1].split()[0]
    assert every > 6 and 0 < change("search", f"F(2,5)={number}", "input") < every
    assert change("search", "no such words", "input") == 0 and change("search", "", "input") == every
    assert window.run('document.getElementById("shown").textContent') == f"{every} of {every} prompts"
    assert 0 < change("kind", "worsened most", "change") < every


def test_no_other_script_runs_on_the_page(window: Browser, pages: dict[str, Path], tmp_path: Path) -> None:
    """What the page's policy is for: a script that got in by a mistake of ours does nothing."""
    text = pages["run"].read_text(encoding="utf-8")
    assert "</main>" in text
    mutant = tmp_path / "mutant.html"
    mutant.write_text(text.replace("</main>", "</main><script>window.hit = 1</script>"), encoding="utf-8")
    window.open(mutant, 1100)
    assert window.run("window.hit") is None and any("Content Security Policy" in one for one in window.messages)
