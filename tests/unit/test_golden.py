"""The published model's numbers, through the functions of `benchmarks.parity`, which also runs the other variants.

The golden files are part of the repository: where one is missing, these tests fail.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import parity
from inference.network import HigherHRNet


@pytest.mark.parametrize("variant", parity.VARIANTS)
def test_parameters_have_the_published_names_and_shapes(variant: str) -> None:
    published = json.loads((parity.GOLDEN / "state_dict_shapes.json").read_text())[variant]
    expected = {name: tuple(shape) for name, shape in published.items() if not name.startswith("conv_scale_layers")}
    assert (len(expected) < len(published)) == variant.startswith("swahr")
    with torch.device("meta"):
        network = HigherHRNet(parity.VARIANTS[variant])
    assert {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()} == expected


@pytest.mark.parametrize("variant", ["coco_w32", "swahr_coco_w32"])  # one network, which runs once
def test_w32_computes_what_the_published_network_computes(variant: str) -> None:
    assert parity.forward(variant) <= 1e-4


def test_images_are_warped_to_the_published_sizes() -> None:
    assert len(json.loads((parity.GOLDEN / "golden_geometry.json").read_text())) >= 20
    assert parity.geometry() == 0


def test_stages_flips_and_tags_are_aggregated_as_published() -> None:
    aggregate, network_map = parity.aggregation()
    assert aggregate <= 1e-5
    assert network_map <= 1e-5


@pytest.mark.parametrize("decoding", parity.DECODINGS)
def test_the_published_people_come_back_with_their_scores(decoding: str) -> None:
    distance, difference = parity.grouping(decoding)
    assert distance <= 1e-3  # pixels
    assert difference <= 1e-5  # values, tags and scores


def test_a_wrong_number_would_be_noticed(tmp_path: Path) -> None:
    """The comparisons above can fail: golden files with one changed number are told apart."""
    with np.load(parity.GOLDEN / "golden_grouping.npz") as golden:
        values = dict(golden)
    values["scores_adjust1_refine1"] = values["scores_adjust1_refine1"] + np.float32(1e-3)
    values["people_adjust1_refine0"] = values["people_adjust1_refine0"][1:]
    np.savez(tmp_path / "golden_grouping.npz", **values)
    assert parity.grouping("adjust1_refine1", tmp_path)[1] > 1e-5
    assert parity.grouping("adjust1_refine0", tmp_path)[0] == float("inf")

    cases = json.loads((parity.GOLDEN / "golden_geometry.json").read_text())
    cases[0]["resized_wh"][0] += 64
    (tmp_path / "golden_geometry.json").write_text(json.dumps(cases))
    assert parity.geometry(tmp_path) == 1
