"""The demo photos that scikit-image carries, and pictures cut from them."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import skimage.data
from numpy.typing import NDArray

# With people, then without.
DEMO_PHOTOS = {
    "astronaut": skimage.data.astronaut,
    "camera": skimage.data.camera,
    "chelsea": skimage.data.chelsea,
    "coffee": skimage.data.coffee,
    "motorcycle": lambda: skimage.data.stereo_motorcycle()[0],
    "rocket": skimage.data.rocket,
}


def demo_photo(name: str) -> NDArray[np.uint8]:
    """One of :data:`DEMO_PHOTOS`: (H, W, 3) uint8 RGB."""
    photo = DEMO_PHOTOS[name]()
    return photo if photo.ndim == 3 else np.repeat(photo[..., None], 3, axis=2)


def write_demo_photos(folder: Path) -> list[Path]:
    """Write the demo photos as they are, as JPEG of high quality."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name in DEMO_PHOTOS:
        paths.append(folder / f"{name}.jpg")
        cv2.imwrite(str(paths[-1]), demo_photo(name)[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 95])
    return paths


def write_cuttings(folder: Path, count: int, size: tuple[int, int] = (640, 480)) -> list[Path]:
    """Write pictures of one size (width, height), cut from the demo photos in turn; the same ones each time."""
    random = np.random.default_rng(0)
    photos = [demo_photo(name) for name in DEMO_PHOTOS]
    paths = []
    for index in range(count):
        photo = photos[index % len(photos)]
        height, width = photo.shape[:2]
        zoom = random.uniform(0.7, 1) * min(width / size[0], height / size[1])
        w, h = int(size[0] * zoom), int(size[1] * zoom)
        x, y = random.integers(0, width - w + 1), random.integers(0, height - h + 1)
        paths.append(folder / f"{index:05}.jpg")
        cv2.imwrite(str(paths[-1]), cv2.resize(photo[y : y + h, x : x + w, ::-1], size))
    return paths
