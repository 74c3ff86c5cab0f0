"""The FiftyOne App in headless Chromium: for the browser tests and the screenshots."""

import contextlib
import json
import shutil
import subprocess
import sys
import time
import urllib.parse
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Timer

from playwright.sync_api import Locator, Page, Response, TimeoutError, sync_playwright

from .database import free_port

REPOSITORY = Path(__file__).resolve().parent.parent

# Chromium asks for nothing outside this machine, and runs as root, as it must in containers.
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def find_chromium() -> str | None:
    """The path of an installed Chromium or Chrome."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    return next((path for path in map(shutil.which, names) if path), None)


@contextlib.contextmanager
def serve(dataset_name: str) -> Iterator[str]:
    """Run `benchmarks.app` in a process of its own until the block ends; yields its address.

    A fresh server for each set of tests: open panels and samples persist in it.
    """
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "benchmarks.app", dataset_name, "--port", str(port)]
    server = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    giving_up = Timer(120, server.kill)
    giving_up.start()
    try:
        said = ""
        for line in server.stdout or ():
            said += line
            if f"http://localhost:{port}/datasets/{dataset_name}" in line:  # said when all is ready
                break
        else:
            raise RuntimeError(f"The App did not start:\n{said}")
        giving_up.cancel()
        yield address
    finally:
        giving_up.cancel()
        server.terminate()
        try:
            server.wait(timeout=20)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


class App:
    """One browser page on a dataset, with what the App asked of its server.

    Attributes:
        page: playwright's page, for everything this class has no word for
        responses: every answer so far, in order
    """

    def __init__(self, page: Page, address: str) -> None:
        self.page = page
        self.address = address
        self.responses: list[Response] = []
        page.on("response", lambda response: self.responses.append(response))  # noqa: PLW0108 (playwright marks it)
        # an advertisement that the App shows once, some time after it was opened, over everything else
        page.add_locator_handler(page.get_by_text("Dismiss"), lambda dismiss: dismiss.click())

    def open(self, dataset_name: str) -> None:
        """Show the grid of a dataset and wait until its images are there."""
        self.page.goto(f"{self.address}/datasets/{dataset_name}", wait_until="domcontentloaded", timeout=90_000)
        self.page.wait_for_selector('[data-cy="looker"]', timeout=90_000)
        self.settle()

    def settle(self, quiet: float = 1.5, limit: float = 60.0) -> None:
        """Wait until no answer has come for `quiet` seconds."""
        begin = last = time.monotonic()
        seen = len(self.responses)
        while time.monotonic() - last < quiet and time.monotonic() - begin < limit:
            self.page.wait_for_timeout(200)
            if len(self.responses) != seen:
                seen, last = len(self.responses), time.monotonic()

    def until(self, condition: Callable[[], bool], limit: float = 90.0) -> None:
        """Wait until a condition holds; fails after `limit` seconds. The sidebar, the panel and the photos
        each come to show a change in their own time."""
        deadline = time.monotonic() + limit
        while not condition():
            assert time.monotonic() < deadline, "What was waited for did not come."
            self.page.wait_for_timeout(300)

    def media(self, folder: Path | str) -> list[str]:
        """The file paths below `folder` that the App has asked for."""
        paths = []
        for response in self.responses:
            url = urllib.parse.urlsplit(response.url)
            if url.path == "/media":
                path = urllib.parse.parse_qs(url.query)["filepath"][0]
                if Path(path).is_relative_to(folder):
                    paths.append(path)
        return paths

    def grid_page(self) -> tuple[int, int]:
        """Samples and bytes (before compression) of the first page of samples that the grid asked for."""
        for response in self.responses:
            if response.url.endswith("/graphql") and "paginateSamples" in (response.request.post_data or ""):
                body = response.body()
                return len(json.loads(body)["data"]["samples"]["edges"]), len(body)
        raise AssertionError("The grid has not asked for any samples.")

    def is_on(self, field: str) -> bool:
        """Whether the sidebar's checkbox of a field is ticked."""
        return self.page.locator(f'[data-cy="checkbox-{field}"] input').first.is_checked()

    def switch(self, field: str, on: bool) -> None:
        """Tick or untick the sidebar's checkbox of a field, and wait for what the App fetches then."""
        if self.is_on(field) != on:
            self.page.locator(f'[data-cy="checkbox-{field}"]').first.click()
            self.settle()

    def enlarge_photos(self) -> None:
        """Make the grid's images large enough for a picture of a handful of them."""
        self.page.locator('[data-cy="slider"]').nth(1).click(position={"x": 34, "y": 17})
        self.page.mouse.move(0, 0)  # an image under the mouse shows its checkbox
        self.settle()

    def pixels(self, selector: str = '[data-cy="looker"]', index: int = 0) -> bytes:
        """A PNG of one element: of the grid's first image unless told otherwise."""
        return self.page.locator(selector).nth(index).screenshot()

    def painted(self, index: int = 0) -> bytes:
        """The same of one of the grid's images, once it no longer changes."""
        former = self.pixels(index=index)
        for _ in range(60):
            self.page.wait_for_timeout(500)
            if (now := self.pixels(index=index)) == former:
                break
            former = now
        return former

    def open_panel(self, name: str, label: str = "Pose heatmaps") -> None:
        """Open a panel beside the grid, or in the open sample beside it, unless it is there."""
        content = self.page.locator(f'[data-cy="panel-content-{name}"]')
        if not content.count():
            surface = self.page.locator('[data-cy="modal"]') if name.endswith("_sample") else self.page
            tab = self.page.locator(f'[data-cy="panel-tab-{name}"]')
            if not tab.count():
                surface.locator('[data-cy="new-panel-btn"]').first.click()
                self.page.get_by_text(label, exact=True).last.click()
            else:
                tab.click()
            content.wait_for(timeout=90_000)
        split = self.page.locator('[data-cy="modal"] [title="Split horizontally"]')
        if name.endswith("_sample") and split.count():
            split.first.click()
        content.locator("button").first.wait_for(timeout=90_000)
        self.settle()

    def button(self, label: str) -> Locator:
        """A button of a panel, by what a screen reader would say; where a sample is open, of the panel in it."""
        surface = '[data-cy="modal"] ' if self.page.locator('[data-cy="modal"]').count() else ""
        return self.page.locator(f'{surface}button[aria-label="{label}"]:visible').first

    def press(self, label: str) -> None:
        """Click a panel's button and wait for what the App fetches then."""
        self.button(label).click(timeout=90_000)
        self.settle()

    def lit(self) -> set[str]:
        """The panel's buttons that are on."""
        return set(
            self.page.locator('button[aria-pressed="true"]:visible').evaluate_all("all => all.map(b => b.ariaLabel)")
        )

    def open_sample(self, index: int) -> None:
        """Open a photo of the grid. A click while it is being painted is lost; one on its upper part selects it."""
        modal = self.page.locator('[data-cy="modal"]')
        photo = self.page.locator('[data-cy="looker"]').nth(index)
        for _ in range(10):
            with contextlib.suppress(TimeoutError):
                box = photo.bounding_box() or {"width": 2, "height": 2}
                photo.click(position={"x": box["width"] / 2, "y": box["height"] - 8}, timeout=8_000)
                modal.wait_for(timeout=8_000)
                break
        self.settle()

    def close_sample(self) -> None:
        """Close the open sample. A key that is pressed while its photo is being loaded is lost."""
        for _ in range(10):
            self.page.keyboard.press("Escape")
            with contextlib.suppress(TimeoutError):
                self.page.locator('[data-cy="modal"]').wait_for(state="hidden", timeout=8_000)
                break

    def prompt(self, label: str) -> Locator:
        """Open an operator's form through the operator browser; returns the form."""
        self.page.keyboard.press("Backquote")
        self.page.get_by_placeholder("Search operations by name...").fill(label)
        self.page.keyboard.press("Enter")
        form = self.page.locator('[data-cy="operators-prompt-modal"]')
        form.get_by_role("button", name="Cancel").wait_for(timeout=90_000)  # the first form of a server imports torch
        self.settle()
        return form


@contextlib.contextmanager
def open_app(address: str, viewport: tuple[int, int] = (1400, 900)) -> Iterator[App]:
    """A headless Chromium with one page, closed at the end of the block."""
    executable = find_chromium()
    if executable is None:
        raise RuntimeError("Chromium is not installed. On Debian and Ubuntu: apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, headless=True, args=FLAGS)
        try:
            page = browser.new_page(viewport={"width": viewport[0], "height": viewport[1]})
            page.route("**/fonts.googleapis.com/**", lambda route: route.abort())
            yield App(page, address)
        finally:
            browser.close()
