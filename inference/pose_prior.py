"""How a person's joints lie to each other: a Gaussian over poses, by which grouping tells what cannot be one person."""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
# Lengths are in units of the person's size.
NOISE = 0.2  # deviation of a sure peak's place
REACH = 0.6  # what is further from where it is expected is not that person's joint
DOUBT = 0.4  # a peak so far off has 0.6 of its say in the next fit
ANYWHERE = 100.0  # variance of a person's place
FEWEST = 4  # joints that a pose needs
FITS = 3  # each with less say for what was far off in the one before
SMALLEST = 2.0  # size in pixels
ABSENT = 1e-9  # weight of joints that are not there
DIGITS = 4  # kept in files


@dataclass(frozen=True)
class PosePrior:
    """A Gaussian over poses of people of size 1, the root mean squared distance of a person's joints from their centre.

    Attributes:
        mean: x and y of each of the K joints, from their centre
        covariance: of x and y of all joints: 2K rows, each up to the diagonal

    Raises:
        ValueError: if the numbers do not belong together or are no covariance
    """

    mean: tuple[tuple[float, float], ...]
    covariance: tuple[tuple[float, ...], ...]

    def __post_init__(self) -> None:
        rows = 2 * len(self.mean)
        if not rows or [len(row) for row in self.covariance] != list(range(1, rows + 1)):
            raise ValueError("the covariance must have two rows for each joint, each up to the diagonal.")
        if not (np.isfinite(self._mean).all() and np.isfinite(self._covariance).all()):
            raise ValueError("the numbers must be finite.")
        if np.linalg.eigvalsh(self._covariance)[0] <= 0:
            raise ValueError("the covariance must be positive definite.")

    @classmethod
    def from_arrays(cls, mean: Array, covariance: Array) -> PosePrior:
        """From a mean (K, 2) and a whole covariance (2K, 2K), rounded as files keep them."""
        rows = covariance.round(DIGITS).tolist()
        return cls(
            tuple((x, y) for x, y in mean.round(DIGITS).tolist()),
            tuple(tuple(row[: index + 1]) for index, row in enumerate(rows)),
        )

    @classmethod
    def from_json(cls, text: str) -> PosePrior:
        """What :meth:`to_json` wrote.

        Raises:
            ValueError, TypeError or KeyError: if it is something else
        """
        read = json.loads(text)
        rows = tuple(tuple(float(value) for value in row) for row in read["covariance"])
        return cls(tuple((float(x), float(y)) for x, y in read["mean"]), rows)

    def to_json(self) -> str:
        return json.dumps({"mean": self.mean, "covariance": self.covariance}, separators=(",", ":"))

    @functools.cached_property
    def _mean(self) -> Array:
        return np.array(self.mean)

    @functools.cached_property
    def _covariance(self) -> Array:
        square = np.zeros(2 * [len(self.covariance)])
        square[np.tril_indices(len(square))] = [value for row in self.covariance for value in row]
        return square + np.tril(square, -1).T

    @functools.cached_property
    def _free(self) -> Array:
        """The covariance of people who may be anywhere."""
        return self._covariance + ANYWHERE * np.tile(np.eye(2), (len(self.mean), len(self.mean)))

    @functools.cached_property
    def _nearness(self) -> Array:
        """(K, K): 1 / the mean squared distance of two joints; 0 of a joint and itself."""
        joints = len(self.mean)
        products = self._covariance.reshape(joints, 2, joints, 2).trace(axis1=1, axis2=3)
        products += self._mean @ self._mean.T  # mean of the product of two joints
        own = products.diagonal()
        squares = own[:, None] + own - 2 * products
        np.fill_diagonal(squares, np.inf)
        return 1 / squares

    def fit(self, places: Array, weights: Array) -> tuple[Array, Array]:
        """Where the joints of P people are to be expected, given some of them.

        Args:
            places: (P, K, 2) pixels
            weights: (P, K), 0 to 1: how far each place can be trusted; above 0 for at least two joints of each person

        Returns:
            the mean (P, K, 2) of the Gaussian given those, pixels, and the people's sizes (P,), pixels
        """
        people = len(places)
        squares = ((places[:, :, None] - places[:, None]) ** 2).sum(axis=3)
        pairs = weights[:, :, None] * weights[:, None] * (self._nearness > 0)
        sizes = np.sqrt((pairs * squares * self._nearness).sum(axis=(1, 2)) / pairs.sum(axis=(1, 2)))
        units = np.maximum(sizes, 1e-6)[:, None, None]
        centres = (weights[:, :, None] * places).sum(axis=1, keepdims=True) / weights.sum(axis=1)[:, None, None]
        noise = np.repeat(NOISE**2 / np.maximum(weights, ABSENT), 2, axis=1)
        seen = self._free + noise[:, :, None] * np.eye(noise.shape[1])
        offsets = (places - centres) / units - self._mean
        moves = self._free @ np.linalg.solve(seen, offsets.reshape(people, noise.shape[1], 1))
        return (self._mean + moves.reshape(places.shape)) * units + centres, sizes

    def fit_robustly(self, places: Array, values: Array) -> tuple[Array, Array, NDArray[np.bool_]]:
        """The same for people of whom some joints may be somebody else's.

        Args:
            places: (P, K, 2) pixels
            values: (P, K) heatmap values, 0 = absent

        Returns:
            as of :meth:`fit`, but sizes of at least 2, and which joints fit, (P, K): none of a person of whom fewer
            than four do
        """
        trust = np.clip(values, 0, 1)
        weights = trust
        known = (values > 0).sum(axis=1) >= FEWEST
        expected, sizes, fits = np.zeros_like(places), np.ones(len(places)), values > 0
        for _ in range(FITS):
            known &= (weights > 0.01).sum(axis=1) >= 2
            expected[known], sizes[known] = self.fit(places[known], weights[known])
            known &= sizes >= SMALLEST
            off = np.linalg.norm(places - expected, axis=2) / np.maximum(sizes, SMALLEST)[:, None]
            weights = trust * np.exp(-(off**2) / (2 * DOUBT**2))
            fits = (values > 0) & (off <= REACH)
        known &= fits.sum(axis=1) >= FEWEST
        fits &= known[:, None]
        expected[known], sizes[known] = self.fit(places[known], (trust * fits)[known])
        return expected, np.maximum(sizes, SMALLEST), fits
