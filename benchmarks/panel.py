"""How fast the panel answers on a large dataset, in the real App: `python -m benchmarks.panel [--count N] [--json]`.

`answer_<click>_ms` is the median time from a click in the browser until the App has the answer of the panel's Python
side, which is when its buttons change; the photos of the grid are painted after that.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fiftyone as fo
from bson import ObjectId

from inference import pipeline

from .browser import App, open_app, serve
from .photos import write_demo_photos

PANEL = "pose_heatmaps"
CLICKS = {
    "next": "Next joint",
    "maximum": "Show the maximum over all joints",
    "all_joints": "Show all joints",
    "off": "Show no maps",
}
FINDS = {
    "nobody": "Samples in which no person was found",
    "unsure": "Samples with people, those with the lowest peak first",
    "back": "Back to the former view",
}


@contextmanager
def large_dataset(count: int, folder: Path) -> Iterator[fo.Dataset]:
    """A dataset of the demo photos and their maps, again and again, deleted at the end."""
    dataset = fo.Dataset(f"panel-{uuid.uuid4().hex[:8]}", persistent=True)
    try:
        paths = write_demo_photos(folder)
        dataset.add_samples([fo.Sample(filepath=str(path)) for path in paths], progress=False)
        pipeline.run(dataset.view(), pipeline.Settings(label_field="pose", maps_dir=str(folder / "maps")))
        samples = dataset._sample_collection
        documents = list(samples.find())
        for start in range(len(documents), count, 1000):
            numbers = range(start, min(start + 1000, count))
            samples.insert_many([{**documents[n % len(documents)], "_id": ObjectId()} for n in numbers])
        dataset.reload()
        yield dataset
    finally:
        dataset.delete()


def click(app: App, label: str, method: str) -> float:
    """Milliseconds from a click until the panel's answer is there."""

    def answers(response: Any) -> bool:
        if "/operators/execute" not in response.url:
            return False
        params = json.loads(response.request.post_data or "{}").get("params", {})
        return bool(params.get("__method__") == method)

    button = app.button(label)
    button.scroll_into_view_if_needed()
    button.hover()
    begun = time.perf_counter()
    with app.page.expect_response(answers, timeout=60_000) as answer:
        app.page.mouse.down()
        app.page.mouse.up()
    answer.value.finished()
    return 1000 * (time.perf_counter() - begun)


def measure(count: int, repeats: int) -> dict[str, float]:
    times: dict[str, list[float]] = {}
    methods = {"maximum": "show_maximum", "off": "show_nothing", "back": "back"}
    with (
        tempfile.TemporaryDirectory(prefix="pose-heatmaps-panel-") as folder,
        large_dataset(count, Path(folder)) as made,
    ):
        with serve(made.name) as address, open_app(address) as app:
            app.open(made.name)
            app.open_panel(PANEL)
            for _ in range(repeats):
                for name, label in (CLICKS | FINDS).items():
                    method = methods.get(name, "find" if name in FINDS else "show_joints")
                    times.setdefault(name, []).append(click(app, label, method))
                    app.settle(quiet=1.0)
        samples = len(made)
    results = {f"answer_{name}_ms": statistics.median(values) for name, values in times.items()}
    slowest = max(value for values in times.values() for value in values)
    return {**results, "slowest_click_ms": slowest, "samples": samples}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=10_000, help="samples in the dataset (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=5, help="clicks on each button (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print one flat JSON object on the last line")
    arguments = parser.parse_args()
    results = measure(arguments.count, arguments.repeats)
    for name, value in results.items():
        print(f"{name:28} {value:10.1f}")
    if arguments.json:
        print(json.dumps(results))


if __name__ == "__main__":
    main()
