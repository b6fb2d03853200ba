"""MLflow as a user sees it: a real server, a real Chromium, two searches side by side.

The searches are recorded by the listener that a search uses, from a small finished run.
Screenshots are kept in `tests/artifacts`.
"""

import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from chromium import chromium, keep_screenshot, wait_for
from running import environment
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By

from krscale.report import draw_curve, read_curve, write_interactive
from krscale.tracking import Tracker

NUM_TRIALS = 30
"""Per method and size: one search then has more runs than the 100 that MLflow loads at first."""
RUNS = [f"{name} {method}" for name in ("digits", "digits-wide") for method in ("plain", "kr")]
pytestmark = [pytest.mark.browser, pytest.mark.cluster, pytest.mark.timeout(600)]


def record(run: Path, name: str) -> None:
    """Record a finished run as its search would, under a name of its own."""
    curve = read_curve(run).model_copy(update={"name": name})
    folder = run.parent / name
    folder.mkdir()
    draw_curve(curve, folder / "curve.png")
    write_interactive([curve], folder / "curve.html")
    with Tracker("", "krscale", folder) as tracker:
        for method in curve.methods:
            tracker.start_run(method, f"{name} {method}", tags={"krscale.kind": "search"})
            for size in curve.sizes:
                result = size.methods[method]
                points = {
                    "curve/test_accuracy": result.test_accuracy or 0.0,
                    "curve/val_accuracy": result.val_accuracy or 0.0,
                }
                tracker.log_metrics(method, points, step=size.num_parameters)
                for number in range(NUM_TRIALS):
                    key = f"{method}/{size.capacity.replace('/', '-')}/trial-{number}"
                    tracker.start_run(key, f"{method} s=0.3 cap={size.capacity}", parent=method)
                    tracker.log_metrics(key, {"val/accuracy": result.val_accuracy or 0.0}, step=1)
                    tracker.end_run(key)
            for file in ("curve.png", "curve.html"):
                tracker.log_artifact(method, folder / file)
            tracker.end_run(method)


@pytest.fixture(scope="module")
def charts(finished_run, tmp_path_factory):
    """The address that `krscale ui` prints."""
    storage = tmp_path_factory.mktemp("browser")
    shutil.copytree(finished_run, storage / "tiny")
    for name in ("digits", "digits-wide"):
        record(storage / "tiny", name)
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    said = storage / "said.txt"
    with said.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "krscale", "ui", "--port", str(port)],
            start_new_session=True, stdout=file, stderr=file,
            env=environment(KRSCALE_STORAGE_PATH=str(storage)),
        )  # fmt: skip
    try:
        address = re.compile(rf"^ +(http://127\.0\.0\.1:{port}/\S+)$", re.MULTILINE)
        yield wait_for(lambda: address.search(said.read_text()), "the address", 180)[1]
    finally:
        process.terminate()
        assert process.wait(30) == 143


def runs_shown(driver: Chrome) -> list[str]:
    links = driver.find_elements(By.CSS_SELECTOR, ".ag-row a")
    return [link.text for link in links if link.text]


def are_drawn(driver: Chrome, names: list[str]) -> bool:
    """Whether one chart has a line for each of these runs, and names it."""
    text = driver.execute_script("return document.body.innerText")
    count = """return Math.max(0, ...[...document.querySelectorAll('.js-plotly-plot')].map(
        chart => chart.querySelectorAll('.scatterlayer .js-line').length))"""
    named = all(f"{name} (curve/test_accuracy)" in text for name in names)
    return named and driver.execute_script(count) >= len(names)


def open_charts(driver: Chrome, address: str) -> None:
    driver.get("about:blank")  # otherwise a change of only the fragment would load nothing
    driver.get(address)
    wait_for(lambda: len(runs_shown(driver)) >= 4, "four top-level runs")


def test_a_person_finds_the_curves_of_two_searches_and_their_trials(charts, tmp_path) -> None:
    with chromium(tmp_path / "profile") as driver:
        open_charts(driver, charts)
        wait_for(lambda: are_drawn(driver, RUNS), "two methods of two searches in one chart")
        for button in driver.find_elements(By.CSS_SELECTOR, "button[aria-label='Close']"):
            button.click()  # MLflow's assistant covers a third of the page
        first = driver.find_element(By.CSS_SELECTOR, ".js-plotly-plot")
        empty = driver.find_elements(By.XPATH, "//*[contains(text(), 'No charts')]")
        assert all(note.location["y"] > first.location["y"] for note in empty)
        keep_screenshot(driver, "mlflow-charts")

        # The address shows only searches; without its filter, their trials can be unfolded.
        driver.find_element(By.CSS_SELECTOR, "[data-testid='clear-button']").click()
        unfold = ".ag-row button .anticon, .ag-row button svg"
        wait_for(lambda: driver.find_elements(By.CSS_SELECTOR, unfold), "what unfolds them")
        expand = driver.find_element(By.CSS_SELECTOR, unfold)
        expand.click()
        wait_for(lambda: any("cap=1/16" in name for name in runs_shown(driver)), "its trials")
        keep_screenshot(driver, "mlflow-trials")


def test_a_person_compares_two_searches(charts, tmp_path) -> None:
    compared = ["digits kr", "digits-wide kr"]
    with chromium(tmp_path / "profile") as driver:
        open_charts(driver, charts)
        wait_for(lambda: are_drawn(driver, RUNS), "the charts, after which rows stand still")
        for name in compared:
            row = driver.find_element(By.LINK_TEXT, name).find_element(
                By.XPATH, "./ancestor::div[@role='row']"
            )
            box = f".ag-row[row-index='{row.get_attribute('row-index')}'] input[type='checkbox']"
            driver.execute_script("document.querySelector(arguments[0]).click()", box)
            time.sleep(1)  # a click is lost while MLflow redraws its rows
        button = (By.XPATH, "//button[normalize-space()='Compare']")
        wait_for(lambda: driver.find_element(*button), "the button").click()
        body = "return document.body.innerText"
        wait_for(lambda: "Comparing 2 Runs" in driver.execute_script(body), "what is compared")
        keep_screenshot(driver, "mlflow-compare")
        metric = wait_for(lambda: driver.find_element(By.LINK_TEXT, "curve/test_accuracy"), "link")
        driver.get(metric.get_attribute("href"))
        wait_for(lambda: are_drawn(driver, compared), "the curves of both searches")
        keep_screenshot(driver, "mlflow-compared-curves")


def test_a_person_opens_the_figure_of_a_search(charts, tmp_path) -> None:
    with chromium(tmp_path / "profile") as driver:
        open_charts(driver, charts)
        run = driver.find_element(By.LINK_TEXT, "digits kr").get_attribute("href")
        driver.get(f"{run.partition('?')[0]}/artifacts/curve.html")
        frame = wait_for(lambda: driver.find_element(By.TAG_NAME, "iframe"), "the artifact")
        driver.switch_to.frame(frame)
        points = "return document.querySelectorAll('.scatterlayer .point').length"
        wait_for(lambda: driver.execute_script(points) >= 4, "the figure to explore")
        driver.switch_to.default_content()
        keep_screenshot(driver, "mlflow-figure")
