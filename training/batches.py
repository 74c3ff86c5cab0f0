"""Training batches: random crops of the photos with their targets.

Every batch is a function of (seed, batch number) only, so a resumed run meets exactly the batches that it would have
met.
"""

from __future__ import annotations

import cv2
import numpy as np
import torch
from torch.utils.data import Dataset

from training.dataset import Photo, random_affine, recolour
from training.targets import make_sample, mosaic


class Batches(Dataset):
    """Training batches by number.

    Args:
        photos: to draw from
        options: the ``data`` part of the configuration; its ``mosaic``, if there is one, says by set which share of the
            crops are four crops of half their side
        seed: another seed, another sequence of batches
        group: so many batches in a row have crops of the same size (one for each process of a step)
        alarms: what `training.mine` found, (x, y, value) in photo pixels by ``<source>/<id>``

    ``batches[n]`` is a dict of the arrays of :func:`make_sample` with a batch dimension in front (torch tensors).
    """

    def __init__(
        self,
        photos: list[Photo],
        options: dict,
        seed: int,
        group: int = 1,
        alarms: dict[str, list[list[float]]] | None = None,
    ):
        self.options, self.seed, self.group, self.alarms = options, seed, group, alarms or {}
        self.sets = {name: [p for p in photos if p.set_name == name] for name in options["sets"]}
        empty = [name for name, members in self.sets.items() if not members]
        empty += [name for name in options.get("mosaic", {}) if name not in options["sets"]]
        if empty:
            raise ValueError(
                f"No photos of the sets {', '.join(empty)}: remove them from 'sets' and 'mosaic' in the configuration."
            )
        shares = np.array([options["sets"][name] for name in self.sets], float)
        self.shares = shares / shares.sum()

    def __getitem__(self, number: int) -> dict[str, torch.Tensor]:
        cv2.setNumThreads(1)  # loader processes are the parallelism
        crops = self.options["crops"]
        shares = np.array([share for _, _, share in crops], float)
        common = np.random.default_rng((self.seed, number // self.group, 0))
        size, count, _ = crops[common.choice(len(crops), p=shares / shares.sum())]
        rng = np.random.default_rng((self.seed, number, 1))
        samples = []
        for name in rng.choice(list(self.sets), count, p=self.shares):
            mosaics = self.options.get("mosaic", {}).get(name, 0)
            if mosaics and rng.random() < mosaics:
                samples.append(mosaic([self._crop(name, size // 2, rng) for _ in range(4)]))
            else:
                samples.append(self._crop(name, size, rng))
        return {key: torch.from_numpy(np.stack([s[key] for s in samples])) for key in samples[0]}

    def _crop(self, name: str, size: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Of any photo of a set."""
        photo = self.sets[name][rng.integers(len(self.sets[name]))]
        affine = random_affine(photo, size, rng, self.options, self.alarms.get(photo.key))
        image = recolour(photo.image(), rng)  # before the crop, so that what is around the photo stays black
        return make_sample(photo, image, affine, size, self.options, rng)
