"""Where a network sees joints and nobody is: `python -m training.mine --data DIR --weights FILE --output FILE`.

Training crops that show these places (`alarms` in a configuration) teach more than crops of any background, most of
which is dark already. Only photos that train and all of whose people are known are looked at.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from torch.nn import functional
from tqdm import tqdm

from inference.network import HigherHRNet
from training.dataset import PERSON_MARGIN, Photo, grown, read_shards, split, trusted
from training.evaluate import add_network_arguments, infer, load_network

LOWEST = 0.1  # of the network's own values
HIGHEST = 0.4  # in photos with people, where what is higher is mostly somebody whom the labels lack
MOST = 8  # alarms of a photo, the highest


def alarms(network: HigherHRNet, photo: Photo, input_size: int) -> list[list[float]]:
    """The peaks of the maximum map away from all people, highest first: (x, y, value), in photo pixels."""
    maps, _, scale = infer(network, photo.image(), input_size)
    maximum = maps.amax(0, keepdim=True)
    peaks = (maximum * (maximum == functional.max_pool2d(maximum, 9, 1, 4)))[0].numpy()
    for box in (*photo.record["ignore"], *[person["bbox"] for person in photo.record["persons"]]):
        x, y, w, h = np.array(grown(box, 0, PERSON_MARGIN)) * scale
        peaks[max(0, int(y)) : max(0, int(np.ceil(y + h))), max(0, int(x)) : max(0, int(np.ceil(x + w)))] = 0
    if photo.record["persons"]:
        peaks[peaks > HIGHEST] = 0
    rows, columns = np.nonzero(peaks > LOWEST)
    best = peaks[rows, columns].argsort()[::-1][:MOST]
    return [
        [
            round((columns[i] + 0.5) / scale, 1),
            round((rows[i] + 0.5) / scale, 1),
            round(float(peaks[rows[i], columns[i]]), 3),
        ]
        for i in best
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the training shards")
    add_network_arguments(parser)
    parser.add_argument("--input-size", type=int, default=320)
    parser.add_argument("--output", type=Path, required=True, help="a JSON file")
    arguments = parser.parse_args()
    network, held_out = load_network(arguments.run, arguments.weights)
    photos = [photo for photo in split(read_shards(arguments.data), **held_out)[0] if trusted(photo)]
    found = {photo.key: alarms(network, photo, arguments.input_size) for photo in tqdm(photos, unit=" photos")}
    found = {key: places for key, places in found.items() if places}
    arguments.output.write_text(json.dumps(found))
    print(f"{len(found)} of {len(photos)} photos have alarms.")


if __name__ == "__main__":
    main()
