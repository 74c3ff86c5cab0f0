"""Damage to maps that nobody told it of comes up at the top, under its name."""

from collections.abc import Iterator

import fiftyone as fo
import fiftyone.operators as foo
import numpy as np
import pytest

from benchmarks import generated

SAMPLES, DAMAGED, LOOKED_AT = 200, 50, 60
FIELDS = {"shifted": "eval_shifted", "swapped": "eval_swapped", "missed": "eval_missed", "false": "eval_false_peaks"}


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[fo.Dataset]:
    """200 samples with maps drawn from their labels; for 50 of them from damaged ones."""
    folder, random = tmp_path_factory.mktemp("planted"), np.random.default_rng(51)
    kinds = list(generated.FAULTS) * DAMAGED
    damaged = dict(zip(random.choice(SAMPLES, DAMAGED, replace=False).tolist(), kinds, strict=False))
    samples = []
    for number in range(SAMPLES):
        people = generated.make_people(random, int(random.integers(1, 4)))
        kind = damaged.get(number)
        seen = generated.FAULTS[kind](people, random) if kind else people
        paths = generated.save_maps(generated.draw_maps(seen, random), folder / str(number))
        samples.append(generated.make_sample(number, people, paths))
        samples[-1]["planted"] = kind
    dataset = generated.make_dataset(samples)
    foo.get_operator("@pose-heatmaps/higherhrnet/evaluate_heatmaps")(dataset, gt_field="people", progress=False)
    yield dataset
    fo.delete_dataset(dataset.name)


def test_damaged_samples_come_up_first(planted: fo.Dataset):
    first = planted.sort_by("eval_mistakes", reverse=True).limit(LOOKED_AT)
    assert sum(kind is not None for kind in first.values("planted")) >= 48


def test_each_kind_comes_up_by_its_field_and_is_named(planted: fo.Dataset):
    found = named = 0
    for kind, field in FIELDS.items():
        planted_so = len(planted.match({"planted": kind}))
        first = planted.sort_by(field, reverse=True).limit(
            planted_so + 2
        )  # a quarter of the 60, for a quarter of the 50
        found += first.values("planted").count(kind)
        named += first.match({"planted": kind}).values("eval_worst").count(kind)
    assert found >= 48
    assert named >= 48


def test_undamaged_samples_are_nearly_without_mistakes(planted: fo.Dataset):
    sound = planted.match({"planted": None})
    assert sound.mean("eval_recall") > 0.99
    assert sound.mean("eval_mistakes") < 0.2
