"""Image files of every mode, format, depth, orientation and number of frames: read right, warned of or refused."""

import struct
import warnings
import zlib
from itertools import product

import numpy as np
import pytest
from PIL import Image

from grokkit import data
from grokkit.errors import DataError

HEIGHT, WIDTH, BLOCK = 16, 24, 8
"""Two by three blocks of one colour each, of the size of JPEG's: what is lossy changes them little."""

LOSSY = 6
"""Largest error of a pixel after JPEG or lossy WebP."""


def blocks(channels: int, seed: int = 0) -> np.ndarray:
    values = np.random.default_rng(seed).integers(30, 220, (HEIGHT // BLOCK, WIDTH // BLOCK, channels), np.uint8)
    return values.repeat(BLOCK, 0).repeat(BLOCK, 1)


def noise(height: int, width: int, seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width), np.uint8))


def load(path, height: int = HEIGHT, width: int = WIDTH) -> tuple[np.ndarray, list[str]]:
    """The pixels (C, H, W) of a file among grey ones in class folders, and the warnings."""
    folder = path.parent / f"folder_{path.name}"
    for number, (split, name) in enumerate(product(("train", "test"), ("a", "b"))):
        place = folder / split / name
        place.mkdir(parents=True)
        if number == 0:
            (place / path.name).write_bytes(path.read_bytes())
        else:
            noise(height, width, number).save(place / "other.png")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        made = data.load_data(folder)
    return made.x_train[0], [str(each.message) for each in caught]


def colour(pixels: np.ndarray) -> np.ndarray:
    return pixels.transpose(2, 0, 1)


def grey(pixels: np.ndarray) -> np.ndarray:
    return pixels[None]


def paletted(palette: np.ndarray, indices: np.ndarray) -> Image.Image:
    image = Image.frombytes("P", indices.shape[::-1], indices.tobytes())
    image.putpalette(palette.astype(np.uint8).tobytes())
    return image


INDICES = np.arange(6, dtype=np.uint8).reshape(2, 3).repeat(BLOCK, 0).repeat(BLOCK, 1)
GREYS = np.array([[v, v, v] for v in (10, 60, 110, 160, 200, 250)])
COLOURS = np.array([[10, 60, 250], [60, 1, 2], [110, 110, 110], [7, 160, 9], [200, 0, 0], [250, 250, 0]])
SOURCE = {
    "1": (blocks(1)[..., 0] > 120).astype(np.uint8) * 255,
    "L": blocks(1)[..., 0],
    "LA": blocks(2),
    "RGB": blocks(3),
    "RGBA": blocks(4),
    "CMYK": blocks(4, seed=1),
    "YCbCr": blocks(3, seed=2) // 2 + 64,
}


def from_cmyk(pixels: np.ndarray) -> np.ndarray:
    c, k = 255.0 - pixels[..., :3], 255.0 - pixels[..., 3:]
    return np.rint(c * k / 255)


def from_ycbcr(pixels: np.ndarray) -> np.ndarray:
    """The formula of JFIF."""
    y, cb, cr = (pixels[..., i].astype(float) - (128 if i else 0) for i in range(3))
    return np.clip(np.stack([y + 1.402 * cr, y - 0.344136 * cb - 0.714136 * cr, y + 1.772 * cb], -1), 0, 255)


def make_image(mode: str) -> tuple[Image.Image, np.ndarray, bool]:
    """An image of a mode, the pixels (C, H, W) that it shows, and whether some are transparent."""
    if mode.startswith("P"):
        palette = GREYS if "grey" in mode else COLOURS
        image, shown = paletted(palette, INDICES), palette[INDICES]
        if "transparent" in mode:
            image.info["transparency"] = 2 if "index" in mode else bytes([255, 128, 255, 255, 255, 255])
        return image, grey(shown[..., 0]) if "grey" in mode else colour(shown), "transparent" in mode
    pixels = SOURCE[mode]
    image = Image.frombytes("L" if mode == "1" else mode, (WIDTH, HEIGHT), pixels.tobytes())
    if mode == "1":
        image = image.convert("1")
    shown = {
        "1": lambda: grey(pixels),
        "L": lambda: grey(pixels),
        "LA": lambda: grey(pixels[..., 0]),
        "RGB": lambda: colour(pixels),
        "RGBA": lambda: colour(pixels[..., :3]),
        "CMYK": lambda: colour(from_cmyk(pixels)),
        "YCbCr": lambda: colour(from_ycbcr(pixels)),
    }[mode]()
    return image, shown, mode in ("LA", "RGBA")


PALETTES = ("P grey", "P colour")
TRANSPARENT = ("P grey transparent index", "P colour transparent index")
FORMATS = {
    "png": ("1", "L", "LA", "RGB", "RGBA", *PALETTES, *TRANSPARENT, "P grey transparent", "P colour transparent"),
    "gif": ("1", "L", *PALETTES, *TRANSPARENT),
    "tiff": ("1", "L", "LA", "RGB", "RGBA", "CMYK", "YCbCr", *PALETTES),
    "bmp": ("1", "L", "RGB", *PALETTES),
    "jpeg": ("L", "RGB", "CMYK", "YCbCr"),
    "webp": ("RGB", "RGBA"),
}
TOLERANCE = {("tiff", "CMYK"): 1, ("tiff", "YCbCr"): 1.5, **{("jpeg", mode): LOSSY for mode in FORMATS["jpeg"]}}


@pytest.mark.parametrize(
    ("kind", "mode"), [(kind, mode) for kind, modes in FORMATS.items() for mode in modes], ids=lambda word: word
)
def test_every_mode_of_every_format_is_read_as_it_is_seen(tmp_path, kind, mode):
    image, shown, transparent = make_image(mode)
    path = tmp_path / f"x.{kind}"
    image.save(
        path, **{"webp": {"lossless": True, "exact": True}, "jpeg": {"quality": 95, "subsampling": 0}}.get(kind, {})
    )
    pixels, said = load(path)
    assert pixels.shape == shown.shape, "one channel exactly if the file is grey"
    assert np.abs(pixels.astype(float) - shown).max() <= TOLERANCE.get((kind, mode), 0)
    assert len(said) == transparent and all("1 of 4 images in" in each and "alpha is dropped" in each for each in said)


def test_an_opaque_alpha_channel_is_dropped_in_silence(tmp_path):
    pixels = SOURCE["RGBA"].copy()
    pixels[..., 3] = 255
    Image.fromarray(pixels).save(tmp_path / "x.png")
    found, said = load(tmp_path / "x.png")
    assert np.array_equal(found, colour(pixels[..., :3])) and not said


def test_one_colour_file_makes_all_of_them_rgb(tmp_path):
    make_image("P colour")[0].save(tmp_path / "x.png")
    folder = tmp_path / "folder_x.png"
    load(tmp_path / "x.png")
    made = data.load_data(folder)
    assert made.input_shape == (3, HEIGHT, WIDTH)
    assert np.array_equal(made.x_train[1], np.repeat(np.asarray(noise(HEIGHT, WIDTH, 1))[None], 3, axis=0))


# ---- orientation

TURN = {
    1: lambda stored: stored,
    2: lambda stored: stored[:, ::-1],
    3: lambda stored: stored[::-1, ::-1],
    4: lambda stored: stored[::-1],
    5: lambda stored: stored.swapaxes(0, 1),
    6: lambda stored: np.rot90(stored, -1),
    7: lambda stored: stored.swapaxes(0, 1)[::-1, ::-1],
    8: lambda stored: np.rot90(stored, 1),
}


@pytest.mark.parametrize("kind", ["jpeg", "png", "webp", "tiff"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied_and_sizes_are_compared_after_it(tmp_path, kind, orientation):
    stored = blocks(3, seed=3)
    image, exif = Image.fromarray(stored), Image.Exif()
    exif[0x0112] = orientation
    options = {"webp": {"lossless": True}, "jpeg": {"quality": 95, "subsampling": 0}}.get(kind, {})
    image.save(tmp_path / f"x.{kind}", exif=exif, **options)
    shown = TURN[orientation](stored)
    pixels, said = load(tmp_path / f"x.{kind}", *shown.shape[:2])
    assert np.abs(pixels.astype(float) - colour(shown)).max() <= (LOSSY if kind == "jpeg" else 0) and not said


def test_a_turned_image_of_another_size_is_refused_with_the_size_that_is_seen(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(blocks(3)).save(tmp_path / "x.png", exif=exif)
    with pytest.raises(DataError, match=f"x.png has {HEIGHT}x{WIDTH}, .*other.png has {WIDTH}x{HEIGHT}"):
        load(tmp_path / "x.png")


# ---- refused


@pytest.mark.parametrize("kind", ["gif", "png", "tiff", "webp"])
@pytest.mark.parametrize("frames", [1, 3])
def test_a_file_of_several_frames_is_refused_and_of_one_is_read(tmp_path, kind, frames):
    images = [Image.fromarray(blocks(1, seed=seed)[..., 0]) for seed in range(frames)]
    options = {"lossless": True} if kind == "webp" else {}
    images[0].save(tmp_path / f"x.{kind}", save_all=True, append_images=images[1:], **options)
    if frames == 1:
        assert np.array_equal(load(tmp_path / f"x.{kind}")[0][0], blocks(1)[..., 0])
        return
    with pytest.raises(DataError, match=rf"x\.{kind} has 3 frames or pages, .*Save each as a file of its own"):
        load(tmp_path / f"x.{kind}")


def png(depth: int, kind: int, rows: list[bytes], *chunks: bytes) -> bytes:
    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", WIDTH, HEIGHT, depth, kind, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows)))
    extra = b"".join(chunk(each[:4], each[4:]) for each in chunks)
    return b"\x89PNG\r\n\x1a\n" + header + extra + body + chunk(b"IEND", b"")


def tiff_of_sixteen_bits(pixels: np.ndarray) -> bytes:
    """A little-endian TIFF of RGB in 16 bits, one strip."""
    data_at, bits_at = 8, 8 + pixels.nbytes
    entries = [
        (256, 3, 1, WIDTH),
        (257, 3, 1, HEIGHT),
        (258, 3, 3, bits_at),
        (259, 3, 1, 1),
        (262, 3, 1, 2),
        (273, 4, 1, data_at),
        (277, 3, 1, 3),
        (278, 3, 1, HEIGHT),
        (279, 4, 1, pixels.nbytes),
    ]
    table = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", *each) for each in entries) + bytes(4)
    return b"II*\0" + struct.pack("<I", bits_at + 6) + pixels.tobytes() + struct.pack("<HHH", 16, 16, 16) + table


DEEP = np.random.default_rng(0).integers(0, 2**16, (HEIGHT, WIDTH, 3), np.uint16)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("rgb.png", png(16, 2, [row.astype(">u2").tobytes() for row in DEEP])),
        ("rgba.png", png(16, 6, [np.dstack([DEEP, DEEP[..., :1]])[i].astype(">u2").tobytes() for i in range(HEIGHT)])),
        ("la.png", png(16, 4, [row[:, :2].astype(">u2").tobytes() for row in DEEP])),
        ("l.png", png(16, 0, [row[:, 0].astype(">u2").tobytes() for row in DEEP])),
        ("rgb.tiff", tiff_of_sixteen_bits(DEEP)),
        ("rgb.ppm", b"P6 24 16 65535\n" + DEEP.astype(">u2").tobytes()),
        ("l.pgm", b"P5 24 16 65535\n" + DEEP[..., 0].astype(">u2").tobytes()),
    ],
)
def test_sixteen_bits_are_refused_not_cut(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with Image.open(tmp_path / name) as image:
        image.load()  # the file is a good one
    with pytest.raises(DataError, match="must have 8 bits per channel"):
        load(tmp_path / name)


@pytest.mark.parametrize(("mode", "kind"), [("I;16", "png"), ("I;16", "tiff"), ("I", "tiff"), ("F", "tiff")])
def test_deep_modes_are_refused(tmp_path, mode, kind):
    dtype = {"I;16": np.uint16, "I": np.int32, "F": np.float32}[mode]
    Image.fromarray(DEEP[..., 0].astype(dtype)).save(tmp_path / f"x.{kind}")
    with pytest.raises(DataError, match="must have 8 bits per channel"):
        load(tmp_path / f"x.{kind}")


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_shallow_grey_is_spread_over_all_levels(tmp_path, depth):
    levels = np.random.default_rng(0).integers(0, 2**depth, (HEIGHT, WIDTH))
    bits = ((levels[..., None] >> np.arange(depth)[::-1]) & 1).reshape(HEIGHT, -1)
    (tmp_path / "x.png").write_bytes(
        png(depth, 0, [row.tobytes() for row in np.packbits(bits.astype(np.uint8), axis=1)])
    )
    pixels, said = load(tmp_path / "x.png")
    assert np.array_equal(pixels, grey(levels * 255 // (2**depth - 1))) and not said


def test_a_transparent_grey_level_is_warned_of_and_stays_grey(tmp_path):
    pixels = SOURCE["L"]
    key = b"tRNS" + struct.pack(">H", int(pixels[0, 0]))
    (tmp_path / "x.png").write_bytes(png(8, 0, [row.tobytes() for row in pixels], key))
    found, said = load(tmp_path / "x.png")
    assert np.array_equal(found, grey(pixels)) and len(said) == 1 and "transparent" in said[0]


def test_cielab_is_converted(tmp_path):
    """L* = 50.2 without colour is the grey 119.5 of sRGB; in memory Pillow adds 128 to a* and b*."""
    Image.new("LAB", (WIDTH, HEIGHT), (128, 128, 128)).save(tmp_path / "x.tiff")
    assert b"\x80\0\0" * 10 in (tmp_path / "x.tiff").read_bytes()
    pixels, _ = load(tmp_path / "x.tiff")
    assert pixels.shape == (3, HEIGHT, WIDTH) and np.abs(pixels.astype(float) - 119.5).max() <= 2


def test_a_photograph_followed_by_previews_is_read(tmp_path):
    photo = Image.fromarray(blocks(3))
    preview = photo.resize((8, 8))
    photo.save(tmp_path / "x.jpg", format="MPO", save_all=True, append_images=[preview], quality=95, subsampling=0)
    with Image.open(tmp_path / "x.jpg") as image:
        assert image.n_frames == 2
    pixels, _ = load(tmp_path / "x.jpg")
    assert np.abs(pixels.astype(float) - colour(blocks(3))).max() <= LOSSY


# ---- doors


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.png", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS pointer.*git lfs pull"),
        ("a.png", b"\n <!DOCTYPE html><html>", r"is text \(HTML, XML or JSON\), not the data"),
        ("a.png", b"", "is empty"),
        ("a.png.gz", b"\x1f\x8b\x08\x00", "compressed by gzip"),
        ("notes.txt", b"hello", "cannot be read as an image: it is damaged, or Pillow does not know its format"),
    ],
)
def test_files_that_are_no_images_are_named_for_what_they_are(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=rf"{name} .*{message}|{name} {message}"):
        load(tmp_path / name)


@pytest.mark.parametrize("factor", [1.5, 3], ids=["warned of by Pillow", "refused by Pillow"])
def test_a_decompression_bomb_is_refused(tmp_path, monkeypatch, factor):
    Image.fromarray(blocks(3)).save(tmp_path / "x.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", int(HEIGHT * WIDTH / factor))
    with pytest.raises(DataError, match=r"x\.png is too large to be one of many training images"):
        load(tmp_path / "x.png")


def test_images_that_would_be_overlooked_are_refused(tmp_path):
    Image.fromarray(blocks(3)).save(tmp_path / "x.png")
    load(tmp_path / "x.png")
    folder = tmp_path / "folder_x.png"
    (folder / "train" / "labels.csv").write_text("")
    data.load_data(folder)
    loose = folder / "train" / "loose.PNG"
    loose.write_bytes((tmp_path / "x.png").read_bytes())
    with pytest.raises(DataError, match=r"one folder per class; loose\.PNG and 0 other images are in none"):
        data.load_data(folder)
    loose.unlink()
    (folder / "test" / "b" / "deeper").mkdir()
    with pytest.raises(DataError, match=r"must hold images, not folders; .*/deeper is one\. Move its images up"):
        data.load_data(folder)


@pytest.mark.parametrize("kind", ["png", "jpeg", "gif", "tiff", "bmp", "webp"])
def test_damaged_files_are_read_or_refused_and_raise_nothing_else(tmp_path, kind):
    """Cut anywhere, or one byte changed: only PNG has checksums, so other formats may show other pixels."""
    from grokkit.data.image_file import decode_image

    make_image("RGB" if kind != "gif" else "P colour")[0].save(tmp_path / f"x.{kind}")
    good, rng = (tmp_path / f"x.{kind}").read_bytes(), np.random.default_rng(0)
    path, refused = tmp_path / f"bad.{kind}", 0
    for turn in range(120):
        at = int(rng.integers(len(good)))
        path.write_bytes(
            good[:at] if turn % 2 else good[:at] + bytes([good[at] ^ int(rng.integers(1, 256))]) + good[at + 1 :]
        )
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                decode_image(path)
        except DataError as error:
            refused += 1
            assert str(path) in str(error)
    assert refused > 20
