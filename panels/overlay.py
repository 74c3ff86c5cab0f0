"""The photo with maps on it, drawn by the panel, and the peaks of the maps."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping
from typing import Any

import cv2
import numpy as np
from matplotlib.colors import to_rgb
from numpy.typing import NDArray

from ..evaluation.reading import decode_maps
from .state import Run
from .view import PLAIN

LONG_SIDE = 900  # pixels of the picture: a panel is hardly wider, and it travels with every change
QUALITY = 82


def read_photo(path: str) -> NDArray[np.uint8] | None:
    """A photo (h, w, 3) BGR as the App turns it, at most LONG_SIDE long; None if it cannot be read."""
    photo = cv2.imread(path, cv2.IMREAD_COLOR)
    if photo is None:
        return None
    scale = min(1.0, LONG_SIDE / max(photo.shape[:2]))
    if scale < 1:
        height, width = (max(1, round(side * scale)) for side in photo.shape[:2])
        photo = cv2.resize(photo, (width, height), interpolation=cv2.INTER_AREA)
    return photo.astype(np.uint8)


def read_map(document: Mapping[str, Any], field: str) -> NDArray[np.float32] | None:
    """A map (h, w), 0 to 1, of a sample as the database holds it; None if it has none that can be read."""
    try:
        return decode_maps({field: document.get(field)})[0]
    except ValueError:
        return None


def peaks(document: Mapping[str, Any], run: Run) -> dict[str, float | None]:
    """The highest value of each joint's map; None where a map is missing."""
    maps = {joint: read_map(document, field) for joint, field in run.joints.items()}
    return {joint: None if values is None else round(float(values.max()), 4) for joint, values in maps.items()}


def draw(
    photo: NDArray[np.uint8],
    maps: Iterable[tuple[NDArray[np.float32], str]],
    opacity: float,
    threshold: float,
    by_value: bool,
) -> NDArray[np.uint8]:
    """The photo with maps on it.

    Args:
        photo: (h, w, 3) BGR
        maps: maps of any size that cover the photo, each with its colour, as :func:`bgr` takes it
        opacity: of a value of 1; 0 to 1
        threshold: lower values are not drawn
        by_value: one colour scale for all maps, instead of each one's own colour
    """
    height, width = photo.shape[:2]
    picture = photo.astype(np.float32)
    for stored, color in maps:
        values = np.asarray(cv2.resize(stored, (width, height), interpolation=cv2.INTER_LINEAR), np.float32)
        shown = values >= max(threshold, 1e-6)
        if by_value:
            paint = cv2.applyColorMap((values * 255).astype(np.uint8), cv2.COLORMAP_VIRIDIS).astype(np.float32)
            cover = (opacity * shown)[..., None]
        else:
            paint = np.array(bgr(color), np.float32)
            # Steeper than the values themselves, so that half a peak is still seen.
            cover = (opacity * shown * values**0.7)[..., None]
        picture = picture * (1 - cover) + paint * cover
    return picture.round().astype(np.uint8)


def mark_peak(picture: NDArray[np.uint8], values: NDArray[np.float32], color: str, threshold: float) -> None:
    """A ring on a picture where a map is highest, if that is above the threshold at all."""
    y, x = np.unravel_index(int(values.argmax()), values.shape)
    if values[y, x] < max(threshold, 0.02):
        return
    height, width = picture.shape[:2]
    center = (round((x + 0.5) / values.shape[1] * width), round((y + 0.5) / values.shape[0] * height))
    radius = max(6, round(max(height, width) / 90))
    cv2.circle(picture, center, radius, (0, 0, 0), 4, cv2.LINE_AA)
    cv2.circle(picture, center, radius, bgr(color), 2, cv2.LINE_AA)


def bgr(color: str) -> tuple[int, int, int]:
    """A colour that somebody chose in the App; PLAIN where it is of a kind that only browsers know."""
    try:
        rgb = to_rgb(color)
    except ValueError:
        rgb = to_rgb(PLAIN)
    red, green, blue = (round(255 * value) for value in rgb)
    return blue, green, red


def data_uri(picture: NDArray[np.uint8]) -> str:
    encoded = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])[1]
    return f"data:image/jpeg;base64,{base64.b64encode(encoded.tobytes()).decode()}"
