"""EXIF orientation: cameras store the sensor's pixels and a tag that says how to turn them."""

from __future__ import annotations

import contextlib

from PIL import Image

ORIENTATION = 0x0112  # of TIFF, which EXIF takes over
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
SOURCES = ("exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp")  # keys of ``Image.info`` that may hold the tag


def upright(image: Image.Image) -> Image.Image:
    """The image as viewers show it; turned once, whoever calls this again.

    As ``PIL.ImageOps.exif_transpose``, but a tag that cannot be read counts as none, where that raises an error. timm
    and torchvision leave images as they are stored.
    """
    if not hasattr(image, "tag_v2") and not any(key in image.info for key in SOURCES):
        return image
    if hasattr(image, "tag_v2"):
        image.load()  # which turns a TIFF itself, and says so only then
    orientation = None
    with contextlib.suppress(Exception):  # damaged EXIF data raise many kinds of errors; the pixels are sound
        orientation = image.getexif().get(ORIENTATION)
    if orientation not in TURNS:
        return image
    turned = image.transpose(TURNS[orientation])
    turned.info = {key: value for key, value in turned.info.items() if key not in SOURCES}
    return turned
