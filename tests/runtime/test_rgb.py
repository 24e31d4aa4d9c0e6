"""Pictures of every mode and colour profile become upright 8-bit sRGB."""

from __future__ import annotations

import io
import struct
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from kontext.errors import KontextError
from kontext.runtime import picture_limits
from kontext.runtime.images import open_picture
from kontext.runtime.rgb import upright_rgb

DISPLAY_P3 = ((0.51512, 0.24120, -0.00105), (0.29198, 0.69225, 0.04189), (0.15710, 0.06657, 0.78407))
"""XYZ, adapted to D50, of Display P3's red, green and blue, as in Apple's published profile."""


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8))


def fixed(value: float) -> bytes:
    return struct.pack(">i", round(value * 65536))


def rgb_profile(primaries: tuple[tuple[float, ...], ...], name: str) -> bytes:
    """An ICC profile (version 2, https://www.color.org/icc32.pdf) of these primaries with sRGB's tone curve."""
    levels = np.arange(1024) / 1023
    linear = np.where(levels <= 0.04045, levels / 12.92, ((levels + 0.055) / 1.055) ** 2.4)
    curve = b"curv\0\0\0\0" + struct.pack(">I", 1024) + np.rint(linear * 65535).astype(">u2").tobytes()
    text = name.encode() + b"\0"
    described = b"desc\0\0\0\0" + struct.pack(">I", len(text)) + text + bytes(78)
    xyz = {
        key: b"XYZ \0\0\0\0" + b"".join(map(fixed, row))
        for key, row in zip(("rXYZ", "gXYZ", "bXYZ"), primaries, strict=True)
    }
    white = b"XYZ \0\0\0\0" + b"".join(map(fixed, (0.9642, 1.0, 0.8249)))
    tags = {"desc": described, "wtpt": white, **xyz, "rTRC": curve, "gTRC": curve, "bTRC": curve}
    start, table, data = 128 + 4 + 12 * len(tags), b"", b""
    for key, value in tags.items():
        table += key.encode() + struct.pack(">II", start + len(data), len(value))
        data += value + bytes(-len(value) % 4)
    head = struct.pack(
        ">I4sI4s4s4s12s4s",
        start + len(data),
        bytes(4),
        0x02100000,
        b"mntr",
        b"RGB ",
        b"XYZ ",
        bytes(12),
        b"acsp",
    )
    head += bytes(28) + b"".join(map(fixed, (0.9642, 1.0, 0.8249)))
    return head.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + data


def with_profile(image: Image.Image, profile: bytes, suffix: str, folder: Path) -> Image.Image:
    image.save(folder / f"profiled{suffix}", icc_profile=profile)
    return open_picture(folder / f"profiled{suffix}")


@pytest.mark.parametrize("suffix", [".png", ".webp", ".tif"])
@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
@pytest.mark.parametrize("name", ["Display P3", "DCI-P3 D65 Gamut with sRGB Transfer"])
def test_display_p3_becomes_srgb(suffix: str, mode: str, name: str, tmp_path: Path) -> None:
    """(234, 51, 35) and (117, 251, 76) of Display P3 are sRGB's pure red and green (CSS Color 4's conversion)."""
    colours = [(234, 51, 35), (117, 251, 76), (128, 128, 128)]
    image = Image.new("RGB", (3, 1))
    image.putdata(colours)
    options = {"lossless": True} if suffix == ".webp" else {}
    profile = rgb_profile(DISPLAY_P3, name)
    image.convert(mode).save(tmp_path / f"p3{suffix}", icc_profile=profile, **options)
    found = np.asarray(upright_rgb(open_picture(tmp_path / f"p3{suffix}"))).astype(int)[0]
    assert (
        np.abs(found - [(255, 0, 0), (0, 255, 0), (128, 128, 128)]).max() <= 3
    )  # 3: of the dark channel, at sRGB's steepest


SRGB = ((0.43607, 0.22249, 0.01392), (0.38515, 0.71687, 0.09708), (0.14307, 0.06061, 0.71410))
"""As DISPLAY_P3, of sRGB IEC61966-2.1."""


@pytest.mark.parametrize(
    "profile",
    [ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(), rgb_profile(SRGB, "Camera RGB")],
)
def test_pictures_in_srgb_keep_their_bits(profile: bytes, tmp_path: Path) -> None:
    image = noise(16, 16)
    assert np.array_equal(upright_rgb(with_profile(image, profile, ".png", tmp_path)), image)


def test_lab_becomes_rgb() -> None:
    image = noise(16, 16)
    profile, lab = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    there = ImageCms.profileToProfile(image, profile, lab, outputMode="LAB")
    assert there is not None
    assert np.abs(np.asarray(upright_rgb(there)).astype(int) - np.asarray(image)).mean() < 3


@pytest.mark.parametrize("profile", [b"not a profile", rgb_profile(DISPLAY_P3, "P3")[:200]])
def test_a_damaged_profile_is_warned_of(profile: bytes, tmp_path: Path) -> None:
    image = noise(8, 8)
    with pytest.warns(UserWarning, match="colour profile is ignored"):
        assert np.array_equal(upright_rgb(with_profile(image, profile, ".png", tmp_path)), image)


def test_a_profile_of_other_colours_is_warned_of(tmp_path: Path) -> None:
    cmyk = noise(8, 8).convert("CMYK")
    cmyk.info["icc_profile"] = rgb_profile(DISPLAY_P3, "P3")
    with pytest.warns(UserWarning, match="it describes RGB colours, and the picture has CMYK"):
        assert np.array_equal(upright_rgb(cmyk), cmyk.convert("RGB"))


def test_transparency_is_laid_over_white() -> None:
    clear = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    with pytest.warns(UserWarning, match="transparent parts of the picture become white"):
        assert upright_rgb(clear).getpixel((0, 0)) == (255, 255, 255)
    half = Image.new("RGBA", (4, 4), (255, 0, 0, 128))
    palette = Image.new("P", (4, 4), 3)
    palette.info["transparency"] = 3
    with pytest.warns(UserWarning, match="transparent"):
        assert upright_rgb(half).getpixel((0, 0)) == pytest.approx((255, 127, 127), abs=1)
    with pytest.warns(UserWarning, match="transparent"):
        assert upright_rgb(palette).getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize(
    "mode",
    [
        "1",
        "L",
        "LA",
        "La",
        "P",
        "PA",
        "RGB",
        "RGBA",
        "RGBa",
        "RGBX",
        "CMYK",
        "YCbCr",
        "HSV",
        "LAB",
        "I;16",
        "I",
        "F",
    ],
)
@pytest.mark.filterwarnings("ignore:transparent parts")
def test_every_mode_becomes_rgb(mode: str) -> None:
    assert upright_rgb(Image.new(mode, (20, 10))).mode == "RGB"


def test_opaque_pictures_are_not_warned_of() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        upright_rgb(noise(8, 8).convert("RGBA"))


def test_sixteen_bits_of_grey_keep_their_brightness(tmp_path: Path) -> None:
    levels = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    Image.fromarray(levels).save(tmp_path / "grey.png")
    grey = np.asarray(upright_rgb(open_picture(tmp_path / "grey.png")))[..., 0]
    assert np.array_equal(grey.reshape(-1), np.arange(256))


def test_integers_of_32_bits_may_be_of_8(tmp_path: Path) -> None:
    levels = np.arange(256, dtype=np.int32).reshape(16, 16)
    Image.fromarray(levels).save(tmp_path / "grey.tif")
    grey = np.asarray(upright_rgb(open_picture(tmp_path / "grey.tif")))[..., 0]
    assert np.array_equal(grey.reshape(-1), np.arange(256))


def test_grey_of_fewer_bits_is_warned_of() -> None:
    with pytest.warns(UserWarning, match="only goes up to 4095 of 65535"):
        upright_rgb(Image.fromarray(np.array([[0, 4095]], np.uint16)))


@pytest.mark.parametrize("largest", [1, 255])
def test_floats_keep_their_brightness(largest: int, tmp_path: Path) -> None:
    levels = np.linspace(0, largest, 256).astype(np.float32).reshape(16, 16)
    Image.fromarray(levels).save(tmp_path / "grey.tif")
    grey = np.asarray(upright_rgb(open_picture(tmp_path / "grey.tif")))[..., 0]
    assert np.array_equal(grey.reshape(-1), np.arange(256))


@pytest.mark.parametrize("values", [(0, 3), (-1, 1), (0, 65535), (0, np.nan), (0, np.inf)])
def test_floats_of_other_ranges_are_refused(values: tuple[float, float]) -> None:
    with pytest.raises(KontextError, match="0 to 1, or 0 to 255, is expected of floats"):
        upright_rgb(Image.fromarray(np.array([values], np.float32)))


@pytest.mark.parametrize("values", [(0, 65536), (-1, 5)])
def test_integers_of_other_ranges_are_refused(values: tuple[int, int]) -> None:
    with pytest.raises(KontextError, match="0 to 65535 is expected of integers"):
        upright_rgb(Image.fromarray(np.array([values], np.int32)))


def test_exif_orientation_is_followed(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    noise(40, 20).save(tmp_path / "turned.jpg", exif=exif)
    assert upright_rgb(open_picture(tmp_path / "turned.jpg")).size == (20, 40)


def test_a_picture_that_was_opened_only_and_is_damaged(tmp_path: Path) -> None:
    noise(200, 200).save(tmp_path / "cut.png")
    data = (tmp_path / "cut.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(data[: len(data) // 2])
    with pytest.raises(KontextError, match="cannot be read"):
        upright_rgb(Image.open(tmp_path / "cut.png"))


def test_large_pictures_are_refused_before_they_are_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    file = io.BytesIO()
    noise(11, 10).save(file, "PNG")
    monkeypatch.setattr(picture_limits.check_pixels, "__defaults__", (100,))
    opened = Image.open(file)
    with pytest.raises(KontextError, match="the picture has more than"):
        upright_rgb(opened)


def test_a_palette_with_more_transparency_than_colours() -> None:
    """Found by tests/torture: a PNG file's tRNS chunk of 300 bytes."""
    picture = Image.new("P", (4, 4))
    picture.info["transparency"] = bytes(300)
    with pytest.raises(KontextError, match="the picture cannot be read: palette"):
        upright_rgb(picture)
