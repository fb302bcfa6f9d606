"""MLflow's own pages on a sweep, as a user sees them: ``mlflow ui`` runs, and the system's Chromium opens them.

The screenshots are test artifacts: they are kept in the folder that the environment variable ``SIFSCALE_SCREENSHOTS``
names, else in pytest's temporary folder.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from matplotlib.figure import Figure
from mlflow import MlflowClient

if TYPE_CHECKING:
    from conftest import Workplace

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs a Chromium of the system")
EXPERIMENT = "mlflow_ui"
# Errors that MLflow 3.17 logs on its pages whatever runs it shows.
NO_LOGIN = "/ajax-api/2.0/mlflow/users/current"  # it asks who is logged in, and a server without logins answers 404
RESIZED = "ResizeObserver loop completed with undelivered notifications"  # a browser's notice: drawn one frame later

# The table of metrics draws only what is near its window, in cells without rows: what stands at the height of a name.
BESIDE = """name => {
    const top = element => Math.round(element.getBoundingClientRect().top);
    const named = name.closest("[role=rowgroup] > *");
    const left = element => element.getBoundingClientRect().left;
    return [...document.querySelectorAll("[role=rowgroup] > *")]
        .filter(cell => cell !== named && top(cell) === top(named) && left(cell) > left(named))
        .sort((one, other) => left(one) - left(other)).map(cell => cell.innerText.trim());
}"""


@dataclass
class Site:
    """The pages of a server in one browser tab, what went wrong on them, and the sweep that they show."""

    url: str
    tab: Any
    screenshots: Path
    experiment: str
    parent: Any
    children: list[Any]
    faults: list[str] = field(default_factory=list)

    def watch(self) -> None:
        """Keeps uncaught errors, errors on the console, and requests to anything but the server."""
        self.tab.on("pageerror", lambda error: self.faults.append(f"uncaught: {error}"))
        self.tab.on("console", self._heard)
        self.tab.on("request", self._asked)

    def _heard(self, message: Any) -> None:
        known = message.location["url"] == f"{self.url}{NO_LOGIN}" or RESIZED in message.text
        if message.type == "error" and not known:
            self.faults.append(f"{message.text} ({message.location['url']})")

    def _asked(self, request: Any) -> None:
        if not request.url.startswith((self.url, f"blob:{self.url}", "data:")):
            self.faults.append(f"asked {request.url}")

    def open(self, page: str) -> None:
        """As "Model training" shows it; MLflow starts with "GenAI", which calls training runs evaluations."""
        self.tab.goto(f"{self.url}/#/{page}{'&' if '?' in page else '?'}workflowType=machine_learning")

    def keep(self, name: str) -> None:
        self.tab.screenshot(path=str(self.screenshots / f"mlflow_{name}.png"))


@pytest.fixture(scope="module")
def served(workplace: Workplace, mlflow_port: int) -> str:
    """Address of a real ``mlflow ui`` on the database of a sweep of two interpolations, one parent and two children."""
    workplace.main(
        "-m", *workplace.overrides("model=nearest,bilinear", "evaluation.ridge=null", "evaluation.details=false"),
        f"tracking.experiment={EXPERIMENT}", f"hydra.sweep.dir={workplace.folder / EXPERIMENT}",
    )  # fmt: skip
    return f"http://127.0.0.1:{mlflow_port}"


@pytest.fixture(scope="module")
def site(workplace: Workplace, served: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    named = os.environ.get("SIFSCALE_SCREENSHOTS")
    screenshots = Path(named) if named else tmp_path_factory.mktemp("screenshots")
    screenshots.mkdir(parents=True, exist_ok=True)
    client = MlflowClient(tracking_uri=workplace.tracking_uri)
    experiment = client.get_experiment_by_name(EXPERIMENT)
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], order_by=["attributes.start_time ASC"])
    parent, *children = runs
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        tab = browser.new_page(viewport={"width": 1600, "height": 1000})
        site = Site(served, tab, screenshots, experiment.experiment_id, parent, children)
        site.watch()
        yield site
        browser.close()


def run_link(site: Site, run: Any) -> Any:
    """The link to a run by its whole name."""
    return site.tab.get_by_role("link", name=run.info.run_name, exact=True)


def test_the_list_of_runs_shows_a_sweep_and_beneath_it_its_runs(site: Site) -> None:
    site.open(f"experiments/{site.experiment}/runs")
    parent = run_link(site, site.parent)
    parent.wait_for()
    assert not any(run_link(site, run).count() for run in site.children), "a sweep is one line"
    cell = site.tab.get_by_role("gridcell").filter(has=parent)
    cell.get_by_role("button").click()  # the plus sign before the name
    links = [run_link(site, run) for run in reversed(site.children)]  # the newest first
    for link in links:
        link.wait_for()
    above, *below = [link.bounding_box() for link in (parent, *links)]
    assert all(box["x"] > above["x"] for box in below), "indented"
    tops = [box["y"] for box in (above, *below)]
    assert tops == sorted(tops)
    assert site.tab.get_by_role("gridcell").filter(has_text="minnesota_osse train").count() == 2, "datasets"
    site.keep("runs")
    assert site.faults == []


def test_two_runs_are_compared_side_by_side(site: Site) -> None:
    ids = [run.info.run_id for run in site.children]
    site.open(f"compare-runs?runs={json.dumps(ids)}&experiments={json.dumps([site.experiment])}")
    site.tab.get_by_role("heading", name="Comparing 2 Runs from 1 Experiment").wait_for()

    def row(name: str) -> list[str]:
        head = site.tab.get_by_role("rowheader", name=name, exact=True)
        cells = site.tab.get_by_role("row").filter(has=head).first.get_by_role("cell")  # the first: tags come last
        return [text.strip() for text in cells.all_inner_texts()]

    assert row("Run Name:") == [run.info.run_name for run in site.children]
    assert row("model.name") == ["nearest", "bilinear"] and row("protocol") == ["honest", "honest"]
    for name in ("test/mae", "test/correlation", "test/bias"):  # of those drawn without scrolling
        link = site.tab.get_by_role("link", name=name, exact=True)
        shown = [float(text) for text in link.evaluate(BESIDE)]
        assert shown == pytest.approx([run.data.metrics[name] for run in site.children], abs=6e-4)
    site.keep("comparison")
    site.tab.get_by_role("rowheader", name="model.name", exact=True).scroll_into_view_if_needed()
    site.keep("comparison_parameters")
    site.tab.get_by_text("Artifacts", exact=True).first.scroll_into_view_if_needed()  # beneath the metrics
    site.keep("comparison_metrics")
    assert site.faults == []


def test_a_picture_of_a_run_is_displayed(workplace: Workplace, site: Site) -> None:
    picture, run_id = "figures/maps.png", site.children[-1].info.run_id
    MlflowClient(workplace.tracking_uri).log_figure(run_id, Figure(), picture)  # drawing them takes seconds
    site.open(f"experiments/{site.experiment}/runs/{run_id}/artifacts/{picture}")
    image = site.tab.get_by_role("img", name=picture)
    image.wait_for()
    site.tab.wait_for_function("name => [...document.images].find(i => i.alt === name)?.naturalWidth > 0", arg=picture)
    site.keep("picture")
    assert site.faults == []


def test_a_sweep_names_its_runs_and_keeps_its_table(site: Site) -> None:
    site.open(f"experiments/{site.experiment}/runs/{site.parent.info.run_id}")
    site.tab.get_by_text("Child runs", exact=True).wait_for()
    for run in site.children:
        site.tab.get_by_role("link", name=run.info.run_name).wait_for()
    site.keep("sweep")
    site.open(f"experiments/{site.experiment}/runs/{site.parent.info.run_id}/artifacts/sweep.json")
    site.tab.get_by_text("nearest base").first.wait_for()
    site.keep("sweep_table")
    assert site.faults == []
