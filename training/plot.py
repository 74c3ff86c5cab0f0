"""A picture of a run so far: `python -m training.plot --run runs/lite` writes `runs/lite/progress.png`."""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
from matplotlib import pyplot

SMOOTHED = 5  # lines of the log


def read_columns(path: Path) -> dict[str, list[float]]:
    """A log as the training writes it, nothing before its first line; NaN where a line lacks a column."""
    if not path.exists():
        return {}
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    return {name: [float(row[name] or "nan") for row in rows] for name in rows[0]} if rows else {}


def plot(run: Path) -> Path:
    """Losses over photos seen, and below them held-out recall and false alarms.

    Args:
        run: output folder of training.train
    """
    losses, held_out = read_columns(run / "log.csv"), read_columns(run / "held_out.csv")
    figure, (above, below) = pyplot.subplots(2, 1, sharex=True, figsize=(8, 8), layout="constrained")
    for name in ("quarter", "half", "pull", "push", "place"):
        values = losses.get(name)
        if values is None:  # runs without that loss
            continue
        smooth = [sum(values[max(0, i - SMOOTHED + 1) : i + 1]) / min(i + 1, SMOOTHED) for i in range(len(values))]
        above.plot(losses["photos"], smooth, label=name)
    above.set(ylabel="loss", yscale="log")
    for name in ("joint_recall", "joint_recall_large", "false_alarm_rate", "recall_at_fa3", "recall_large_at_fa3"):
        below.plot(held_out.get("photos", []), held_out.get(name, []), marker="o", label=name)
    below.set(xlabel="photos seen", ylabel="share, held-out photos", ylim=(0, 1))
    for axes in (above, below):
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend()
    path = run / "progress.png"
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, required=True, help="output folder of training.train")
    print(plot(parser.parse_args().run))


if __name__ == "__main__":
    main()
