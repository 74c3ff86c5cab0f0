"""An image file as an array, or a sentence that says why not."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray


def read_image(filepath: str) -> NDArray[np.uint8]:
    """An image as the App shows it: (H, W, 3) uint8 RGB, turned as its EXIF orientation says.

    16-bit images are reduced to 8 bits, alpha is dropped, of an animation the first frame is taken.

    Raises:
        ValueError: if there is no image that can be read; a sentence that says why
    """
    try:
        data = Path(filepath).read_bytes()
    except FileNotFoundError:
        raise ValueError(f"There is no file {filepath}.") from None
    except OSError as error:
        raise ValueError(f"{filepath} cannot be read: {error.strerror}.") from error
    if not data:
        raise ValueError(f"{filepath} is empty.")
    if data.startswith(b"\xff\xd8") and is_cut_off(data):
        raise ValueError(f"{filepath} is a JPEG that was cut off; copy or download it again.")
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
    except cv2.error as error:
        raise ValueError(f"{filepath} cannot be decoded: {error.err}.") from error
    if image is None:
        raise ValueError(f"{filepath} is not an image that OpenCV can decode; is it damaged, or another kind of file?")
    return image  # type: ignore[return-value]


def is_cut_off(jpeg: bytes) -> bool:
    """Whether a JPEG file ends before its image does, which OpenCV would fill up with grey.

    Thumbnails have an end of their own, and phones put videos behind the image: what counts is the first end behind
    the beginning of the image's own data.
    """
    place = 2
    while place + 4 <= len(jpeg) and jpeg[place] == 0xFF:
        marker = jpeg[place + 1]
        if marker == 0xDA:  # the data begin
            return jpeg.find(b"\xff\xd9", place) < 0
        if marker == 0xD9:
            return False
        alone = marker in (0x01, 0xFF) or 0xD0 <= marker <= 0xD7  # without a length; 0xFF fills up
        place += (1 if marker == 0xFF else 2) if alone else 2 + int.from_bytes(jpeg[place + 2 : place + 4], "big")
    return place + 4 > len(jpeg)  # else it is damaged, which OpenCV will say
