"""Decode one image file to 8-bit pixels, as it is meant to be seen: orientation applied, alpha dropped, one frame."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from grokkit.data.foreign_files import require_file
from grokkit.errors import DataError

if TYPE_CHECKING:
    from PIL.Image import Image

GREY_MODES = frozenset({"1", "L", "LA", "La"})
PALETTE_MODES = frozenset({"P", "PA"})
ALPHA_MODES = frozenset({"LA", "La", "PA", "RGBA", "RGBa"})
DEEP_MODES = ("I", "F")


class Decoded(NamedTuple):
    """Pixels (H, W) uint8 of a greyscale file, else (H, W, 3), and whether any of them is transparent."""

    pixels: np.ndarray
    transparent: bool


def decode_image(file: Path) -> Decoded:
    """Decode an image file with Pillow.

    Its EXIF orientation is applied. Greyscale are black and white, grey, grey with alpha, and palettes in which every
    pixel is grey; CMYK and YCbCr become RGB by Pillow's formulas, without colour profiles. Alpha is dropped.

    Raises:
        DataError: not an image, a damaged one, one with several frames or pages, more than 8 bits per channel, or
            so many pixels that Pillow suspects an attack.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    require_file(file)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            # Pillow reads the rest of such files rightly.
            warnings.filterwarnings("ignore", message="Corrupt EXIF data|Metadata Warning|Invalid APNG")
            with Image.open(file) as image:
                _check_content(image, file)
                return _to_pixels(ImageOps.exif_transpose(image))
    except DataError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DataError(f"{file} is too large to be one of many training images: {error}. Resize it first") from error
    except UnidentifiedImageError as error:
        raise DataError(
            f"{file} cannot be read as an image: it is damaged, or Pillow does not know its format. Replace or "
            "remove it, or rename it to begin with a dot"
        ) from error
    except Exception as error:  # damaged files raise anything: OSError, SyntaxError, struct.error, ValueError, ...
        raise DataError(f"{file} cannot be decoded: {type(error).__name__}: {error}. Replace or remove it") from error


def _check_content(image: Image, file: Path) -> None:
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format != "MPO":  # a camera's MPO is one photograph, followed by previews of it
        raise DataError(
            f"{file} has {frames} frames or pages, and a training image is one. Save each as a file of its own, or "
            "remove all but one"
        )
    if image.mode.startswith(DEEP_MODES):
        raise DataError(f"images must have 8 bits per channel; {file} has Pillow mode {image.mode!r}. Convert it first")
    if _is_cut_to_eight_bits(image):
        raise DataError(f"images must have 8 bits per channel; {file} has 16. Convert it first")


def _is_cut_to_eight_bits(image: Image) -> bool:
    """Return whether Pillow would drop the lower bits: it has no mode for colours of 16 bits."""
    for decoder, _, _, arguments in getattr(image, "tile", ()):
        words = arguments if isinstance(arguments, tuple) else (arguments,)
        if any(isinstance(word, str) and ";16" in word for word in words):
            return True
        if decoder.startswith("ppm") and any(isinstance(word, int) and word > 255 for word in words):
            return True
    return False


def _to_pixels(image: Image) -> Decoded:
    transparent = False
    if image.mode in ALPHA_MODES or "transparency" in image.info:
        rgba = np.asarray(image.convert("RGBA"))
        colours, transparent = rgba[..., :3], bool(rgba[..., 3].min() < 255)
    elif image.mode in GREY_MODES:
        return Decoded(np.asarray(image.convert("L")), False)
    else:
        colours = np.asarray(image.convert("RGB"))
    grey = image.mode in GREY_MODES or (image.mode in PALETTE_MODES and bool((colours == colours[..., :1]).all()))
    return Decoded(colours[..., 0] if grey else colours, transparent)
