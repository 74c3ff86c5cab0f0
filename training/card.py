"""Measure the bundled weights and put the figures into their model card: `python -m training.card --data DATA_DIR`.

`DATA_DIR` has `val/images`, `val/person_keypoints.json` and `person_free/images`. Rewrites what stands between
`<!-- measured: … -->` and `<!-- end -->` in `assets/MODEL_CARD.md`; the prose around it is by hand. Once per release,
after `training.export`: no setting may be chosen by these photos.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import re
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import fiftyone as fo
from pycocotools.coco import COCO

from benchmarks.accuracy import measure
from evaluation import evaluate
from inference import checkpoints, pipeline
from inference.joints import COCO as JOINTS
from inference.predictor import Predictor
from training.train import write

ASSETS = Path(__file__).resolve().parent.parent / "assets"
SECTION = re.compile(r"(<!-- measured: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def table(header: Sequence[object], rows: Iterable[Sequence[object]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "".join(
        "| " + " | ".join(f"{c:.2f}" if isinstance(c, float) else str(c) for c in line) + " |\n" for line in lines
    )


def fill(card: str, sections: dict[str, str]) -> str:
    """A model card with new text in its measured sections.

    Raises:
        ValueError: if the card lacks one of the sections, or has one that is not given
    """
    names = [name for _, name, _ in SECTION.findall(card)]
    if sorted(names) != sorted(sections):
        raise ValueError(
            f"The model card has the measured sections {', '.join(names) or 'none'}; it must have each of "
            f"{', '.join(sections)} once, as '<!-- measured: name -->' and '<!-- end -->' on lines of their own."
        )
    return SECTION.sub(lambda match: match[1] + sections[match[2]] + match[3], card)


def facts(about: dict[str, Any], network: Any, size: int) -> str:
    parameters = sum(parameter.numel() for parameter in network.parameters())
    if network.pose_refiner:
        refiner = sum(parameter.numel() for parameter in network.pose_refiner.network.parameters())
        sizes = f"{parameters / 1e6:.2f} M parameters and {refiner / 1e6:.2f} M of the pose refiner"
    else:
        sizes = f"{parameters / 1e6:.2f} M parameters"
    width, head = about["network"]["width"], about["network"].get("head_width")
    rows = [
        ("what", f"HigherHRNet (arXiv 1908.10357), width {width}" + (f", heads of width {head}" if head else "")),
        ("outputs", f"a map and a tag for each of the {len(JOINTS)} joints of {about['joint_set']}"),
        ("size", f"{sizes}, fp16, {size / 1e6:.1f} MB"),
        ("input", f"RGB, ImageNet mean and deviation, short side {about['input_size']} pixels"),
        ("trained", f"{about['photos_seen']:,} photos seen, exported {about['date']}"),
        ("file", f"SHA-256 `{about['sha256']}`, also in the JSON beside it"),
    ]
    return table(["", about["name"]], rows)


def accuracy(figures: dict[str, float], free: int) -> str:
    f = {name: f"{value:.3f}" for name, value in figures.items()}
    rows = [
        ("AP, AP50, AR (OKS, all groups, as published)", f"{f['ap']}, {f['ap50']}, {f['ar']}", ""),
        ("AP of medium and large people", f["ap_medium"], f["ap_large"]),
        ("joints found at 0.2", f["joint_recall"], f["joint_recall_large"]),
        (
            f"joints found at {figures['threshold_fa3']:.2f}, which 3% of the person-free photos exceed",
            f["recall_at_fa3"],
            f["recall_large_at_fa3"],
        ),
        ("person-free photos with a peak of at least 0.2", f["false_alarm_rate"], ""),
    ]
    title = f"{figures['images']} photos of people, {free} without"
    return table([title, "all people", "large people"], rows)


def by_joint(results: dict[str, Any]) -> str:
    """The share of labelled joints that are found, by joint and size of the person."""

    def share(joint: str, size: str) -> float:
        counts = results["statuses"][size][joint]
        return counts[0] / max(1, sum(counts))

    return table(
        ["joint", "medium", "large"],
        [(j.replace("_", " "), share(j, "medium"), share(j, "large")) for j in results["joints"]],
    )


def reliability(results: dict[str, Any]) -> str:
    bins = [b for b in results["reliability"] if b["from"] >= 0.2]
    rows = [
        ["on a joint", *(b["true"] / max(1, b["true"] + b["stray"]) for b in bins)],
        ["peaks", *(b["true"] + b["stray"] for b in bins)],
    ]
    return table(["peak value", *(f"{b['from']:.1f} to {b['from'] + 0.1:.1f}" for b in bins)], rows)


def evaluated(data: Path) -> dict[str, Any]:
    """The results of evaluate_heatmaps on the labelled photos."""
    annotations = data / "val" / "person_keypoints.json"
    with tempfile.TemporaryDirectory(prefix="pose-heatmaps-card-") as folder:
        dataset = fo.Dataset.from_dir(
            dataset_type=fo.types.COCODetectionDataset,
            data_path=str(data / "val" / "images"),
            labels_path=str(annotations),
            label_types="keypoints",
            include_id=True,
            label_field="people",
            progress=False,
        )
        try:
            pipeline.run(dataset.view(), pipeline.Settings(label_field="pose", maps_dir=folder))
            settings = evaluate.Settings(gt_field="people_keypoints", annotations=str(annotations))
            return dict(evaluate.evaluate(dataset, settings).results or {})
        finally:
            dataset.delete()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with val/ and person_free/")
    parser.add_argument("--name", default=checkpoints.DEFAULT_MODEL, help="of the bundled model (default: %(default)s)")
    arguments = parser.parse_args()
    val, free = arguments.data / "val", arguments.data / "person_free" / "images"

    model = checkpoints.load(arguments.name)
    predictor = Predictor(model.network, model.entry.joint_set.flip, model.entry.input_size)
    with contextlib.redirect_stdout(io.StringIO()):
        annotations = COCO(str(val / "person_keypoints.json"))
    figures = measure(predictor, model.entry.joint_set, val / "images", annotations, free)
    results = evaluated(arguments.data)
    about = json.loads((ASSETS / f"{arguments.name}.json").read_text())
    sections = {
        "facts": facts(about, model.network, (ASSETS / about["file"]).stat().st_size),
        "accuracy": accuracy(figures, sum(path.is_file() for path in free.iterdir())),
        "joints": by_joint(results),
        "reliability": reliability(results),
    }
    card = ASSETS / "MODEL_CARD.md"
    write(card, fill(card.read_text(encoding="utf-8"), sections).encode())
    print(f"{card} has the figures of {arguments.name}.")


if __name__ == "__main__":
    main()
