"""Browser tests: one App server per test file, one Chromium per test."""

import os
import uuid
from collections.abc import Iterator

import pytest

from benchmarks.browser import App, find_chromium, open_app, serve

MISSING = "Chromium is not installed, so the App is not tested. On Debian and Ubuntu: apt-get install chromium"

if find_chromium() is None:
    if os.environ.get("POSE_HEATMAPS_REQUIRE_BROWSER") == "1":
        raise pytest.UsageError(MISSING)
    collect_ignore_glob = ["test_*.py"]

    def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
        terminalreporter.write_line(f"SKIPPED tests/app: {MISSING}", yellow=True)


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """The address of an App server on the test run's database."""
    import fiftyone as fo

    empty = fo.Dataset(f"test-server-{uuid.uuid4().hex[:12]}", persistent=True)
    with serve(empty.name) as address:
        yield address
    empty.delete()


@pytest.fixture
def app(server: str) -> Iterator[App]:
    with open_app(server) as opened:
        yield opened
