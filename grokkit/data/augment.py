"""Random crop, flip and cutout of whole batches on their device, distributed as their per-image originals."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from grokkit.errors import UsageError
from grokkit.registry import did_you_mean

Augmentation = Callable[..., Tensor]
"""Called as `augmentation(x, generator=generator)`; `altflip` as `altflip(x, mirrored=mirrored)`, because it is the one
that knows which images these are and which epoch it is."""

ALLOWED = "'flip', 'altflip', 'crop<pad>' (reflected border), 'crop<pad>:constant' (black border), 'cutout<size>'"
SPEC = re.compile(
    r"(?P<flip>flip)|(?P<altflip>altflip)|crop(?P<pad>[1-9]\d*)(:(?P<mode>reflect|constant))?|cutout(?P<size>[1-9]\d*)"
)


def parse_augment(specs: Sequence[str]) -> tuple[Augmentation, ...]:
    """Augmentations in the order of their words, such as `("crop4", "flip", "cutout8")`.

    Raises:
        UsageError: a word that is not allowed; the message names those that are.
    """
    if isinstance(specs, str):
        raise UsageError(f"`augment` must be a tuple of words such as ('crop4', 'flip'); got the text {specs!r}")
    return tuple(_parse_one(spec) for spec in specs)


def _parse_one(spec: str) -> Augmentation:
    found = SPEC.fullmatch(spec)
    if found is None:
        hint = did_you_mean(spec, ["flip", "altflip", "crop4", "crop4:constant", "cutout8"])
        raise UsageError(f"`augment` takes {ALLOWED}; got {spec!r}.{hint}")
    if found["flip"]:
        return flip
    if found["altflip"]:
        return altflip
    if found["pad"]:
        return partial(crop, pad=int(found["pad"]), mode=found["mode"] or "reflect")
    return partial(cutout, size=int(found["size"]))


def crop(x: Tensor, pad: int, generator: torch.Generator, mode: str = "reflect") -> Tensor:
    """Pad every image by `pad` and cut a window of its old size at a uniformly random place.

    The distribution is that of torchvision's `RandomCrop(H, padding=pad, padding_mode=mode)`.

    Args:
        x: (B, C, H, W), any dtype; left as it is.
        pad: pixels on every side; below H and W where the border is reflected.
        generator: on the device of `x`.
        mode: border, `reflect` (without repeating the edge) or `constant` (zeros).

    Returns: (B, C, H, W), new memory.

    Raises:
        UsageError: an unknown mode, or a pad too large to reflect.
    """
    height, width = x.shape[2:]
    top, left = torch.randint(2 * pad + 1, (2, len(x)), generator=generator, device=x.device)
    padded = _pad(x, pad, mode).contiguous()
    image, channel, row, _ = padded.stride()
    # A view of the window that begins at each place in memory, one chosen per image: the same bytes as slicing. Copied
    # by rows it takes an eighth of the time of an index per pixel.
    places = (len(x) - 1) * image + 2 * pad * row + 2 * pad + 1
    windows = padded.as_strided((places, x.shape[1], height, width), (1, channel, row, 1))
    return windows.index_select(0, torch.arange(len(x), device=x.device) * image + top * row + left)


def _pad(x: Tensor, pad: int, mode: str) -> Tensor:
    if mode == "constant":
        return functional.pad(x, (pad, pad, pad, pad))
    if mode != "reflect":
        raise UsageError(f"the border of a crop must be 'reflect' or 'constant'; got {mode!r}")
    if pad >= min(x.shape[2:]):
        raise UsageError(
            f"a reflected border must be smaller than the image, 1..{min(x.shape[2:]) - 1} pixels; got {pad}. "
            f"Use a smaller pad or 'crop{pad}:constant'"
        )
    # By pieces, because torch's own reflection does not take uint8 on every device; whole rows are mirrored faster
    # than the few pixels of a border.
    for axis in (3, 2):
        mirrored, length = x.flip(axis), x.shape[axis]
        before, after = mirrored.narrow(axis, length - 1 - pad, pad), mirrored.narrow(axis, 1, pad)
        x = torch.cat([before, x, after], axis)
    return x


def flip(x: Tensor, generator: torch.Generator) -> Tensor:
    """Mirror every image left to right with probability 1/2, as torchvision's `RandomHorizontalFlip` does.

    Args:
        x: (B, C, H, W), any dtype; left as it is.
        generator: on the device of `x`.

    Returns: (B, C, H, W), new memory.
    """
    heads = torch.rand(len(x), generator=generator, device=x.device) < 0.5
    return altflip(x, heads)


def altflip(x: Tensor, mirrored: Tensor) -> Tensor:
    """Mirror the images that are `mirrored`: the alternating flip, in which every epoch mirrors the images that the
    epoch before did not, so that two epochs show each image in both ways.

    Source: Jordan 2024, arXiv 2404.00498. Within an epoch it is distributed as `flip`.

    Args:
        x: (B, C, H, W), any dtype; left as it is.
        mirrored: (B,) bool, on the device of `x`.

    Returns: (B, C, H, W), new memory.
    """
    # Whole images are chosen, not pixels: a quarter of the time of `torch.where`.
    both = torch.cat([x, x.flip(3)])
    return both.index_select(0, torch.arange(len(x), device=x.device) + len(x) * mirrored)


def cutout(x: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """Blacken one square per image, its centre uniform over the image, clipped at the borders.

    Source: DeVries and Taylor 2017, arXiv 1708.04552. For an odd `size` the square has its centre in the middle.

    Args:
        x: (B, C, H, W), any dtype; left as it is.
        size: side of the square in pixels, 1 or more.
        generator: on the device of `x`.

    Returns: (B, C, H, W), new memory.
    """
    inside = []
    for length in x.shape[2:]:
        start = torch.randint(length, (len(x), 1), generator=generator, device=x.device) - size // 2
        places = torch.arange(length, device=x.device)
        inside.append((places >= start) & (places < start + size))
    square = inside[0][:, None, :, None] & inside[1][:, None, None, :]
    return x.masked_fill(square, 0)
