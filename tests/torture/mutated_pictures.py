"""Damaged picture files, the same for the same seed: small files of every format, in which bits, fields, chunks and
ends are changed, with checksums mended so that the damage gets past them."""

from __future__ import annotations

import contextlib
import io
import random
import struct
import zlib
from functools import cache

import numpy as np
from PIL import Image, ImageCms, features

EXTREMES = (
    0,
    1,
    2,
    0x7F,
    0x80,
    0xFF,
    0x100,
    0x7FFF,
    0x8000,
    0xFFFF,
    0x10000,
    0x7FFFFFFF,
    0x80000000,
    0xFFFFFFFF,
)

PNG_MAGIC = b"\x89PNG\r\n\x1a\n"


def encoded(image: Image.Image, file_format: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, file_format, **options)
    return file.getvalue()


@cache
def samples() -> dict[str, bytes]:
    """A healthy file of each kind, by a name that begins with the format's."""
    values = np.random.default_rng(0).integers(0, 256, (40, 52, 4), np.uint8)
    values[:20, :, :3] = values[0, 0, :3]  # something to compress
    rgba = Image.fromarray(values)
    rgb, grey = rgba.convert("RGB"), rgba.convert("L")
    palette, deep = rgb.quantize(16), Image.fromarray(values[..., 0].astype(np.uint16) * 257)
    cmyk, bits = rgb.convert("CMYK"), grey.convert("1")
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "maker"
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    more = {"exif": exif.tobytes(), "icc_profile": profile}
    found = {
        "png rgb": encoded(rgb, "PNG", **more),
        "png rgba": encoded(rgba, "PNG"),
        "png palette": encoded(palette, "PNG", transparency=3),
        "png deep": encoded(deep, "PNG"),
        "png bits": encoded(bits, "PNG"),
        "jpeg": encoded(rgb, "JPEG", **more),
        "jpeg progressive": encoded(rgb, "JPEG", progressive=True, restart_marker_rows=1),
        "jpeg grey": encoded(grey, "JPEG"),
        "jpeg cmyk": encoded(cmyk, "JPEG"),
        "webp": encoded(rgb, "WEBP", **more),
        "webp lossless": encoded(rgba, "WEBP", lossless=True),
        "webp frames": encoded(rgb, "WEBP", save_all=True, append_images=[rgb.rotate(90)]),
        "bmp": encoded(rgb, "BMP"),
        "bmp palette": encoded(palette, "BMP"),
        "bmp rle": rle_bitmap(),
        "gif": encoded(palette, "GIF", transparency=2),
        "gif frames": encoded(palette, "GIF", save_all=True, append_images=[palette.rotate(90)]),
        "tiff": encoded(rgb, "TIFF", **more),
        "tiff floats": encoded(Image.fromarray(values[..., 0] / np.float32(255)), "TIFF"),
        "tiff deep": encoded(deep, "TIFF", compression="tiff_lzw"),
        "tiff cmyk": encoded(cmyk, "TIFF", compression="tiff_adobe_deflate"),
        "tiff bits": encoded(bits, "TIFF", compression="group4"),
        "tiff tiles": encoded(rgb, "TIFF", compression="tiff_lzw", tiffinfo={322: 16, 323: 16}),
        "tiff big": encoded(rgba, "TIFF", big_tiff=True, compression="packbits"),
    }
    for compression in ("jpeg", "lzma", "zstd"):
        found[f"tiff {compression}"] = encoded(rgb, "TIFF", compression=compression)
    if features.check("avif"):
        found["avif"] = encoded(rgb, "AVIF", speed=10)
        found["avif alpha"] = encoded(rgba, "AVIF", speed=10, **more)
    return found


def rle_bitmap() -> bytes:
    """A BMP file of 8 bits with runs, a literal, a jump and ends of lines, which Pillow does not write."""
    pixels = (
        b"\x08\x11\x00\x04\x01\x02\x03\x04\x00\x00\x00\x02\x01\x01" + b"\x0a\x07\x00\x00" * 6 + b"\x00\x01"
    )
    palette = b"".join(struct.pack("<I", i * 0x010203) for i in range(256))
    start = 14 + 40 + len(palette)
    header = struct.pack("<IiiHHIIiiII", 40, 16, 8, 1, 8, 1, len(pixels), 1, 1, 256, 0)
    return b"BM" + struct.pack("<IHHI", start + len(pixels), 0, 0, start) + header + palette + pixels


def mutated(seed: int, formats: tuple[str, ...] = ()) -> tuple[str, bytes]:
    """The name of a healthy file, of these formats only if there are any, and what has become of it."""
    dice = random.Random(seed)
    names = sorted(name for name in samples() if not formats or name.startswith(formats))
    name = names[seed % len(names)]
    data = samples()[name]
    kind = name.split()[0]
    relatives = [samples()[each] for each in names if each.split()[0] == kind]
    for _ in range(dice.choice((1, 1, 1, 2, 3, 8))):
        parts = {"png": png_chunks, "jpeg": jpeg_segments, "webp": riff_chunks}.get(kind)
        pieces = parts(data) if parts is not None and dice.random() < 0.5 else []
        if len(pieces) > 1:
            data = join(kind, change_pieces(pieces, dice))
        elif kind == "tiff" and dice.random() < 0.5:
            data = change_tag(data, dice)
        else:
            data = change_bytes(data, dice.choice(relatives), dice)
    return name, data


def change_bytes(data: bytes, relative: bytes, dice: random.Random) -> bytes:
    """One change that does not know what the bytes mean."""
    result = bytearray(data)
    if not result:
        return relative
    head = dice.random() < 0.4
    at = dice.randrange(min(len(result), 64) if head else len(result))
    how = dice.randrange(7)
    if how == 0:
        result[at] ^= 1 << dice.randrange(8)
    elif how == 1:
        size = dice.choice((1, 2, 4, 4))
        value = dice.choice(EXTREMES) & ((1 << 8 * size) - 1)
        result[at : at + size] = value.to_bytes(size, dice.choice(("big", "little")))
    elif how == 2:
        del result[at:]
    elif how == 3:
        del result[at : at + dice.randrange(1, 40)]
    elif how == 4:
        result[at:at] = dice.randbytes(dice.randrange(1, 40))
    elif how == 5:
        begin = dice.randrange(len(result))
        result[at:at] = result[begin : begin + dice.randrange(1, 400)] * dice.choice((1, 1, 2, 50))
    else:
        cut = dice.randrange(len(relative) + 1)
        result[at:] = relative[cut:]
    return bytes(result)


def change_pieces(pieces: list[bytes], dice: random.Random) -> list[bytes]:
    """Chunks or segments changed inside, repeated, left out or moved."""
    at, how = dice.randrange(len(pieces)), dice.randrange(6)
    if how == 0:
        pieces[at:at] = [pieces[at]] * dice.choice((1, 2, 30))
    elif how == 1:
        del pieces[at]
    elif how == 2:
        pieces.insert(dice.randrange(len(pieces)), pieces.pop(at))
    else:
        head, body = pieces[at][:4], pieces[at][4:]
        pieces[at] = head + change_bytes(body, body[::-1], dice)
    return pieces


def change_tag(data: bytes, dice: random.Random) -> bytes:
    """One field of one entry of a TIFF file's first directory set to something extreme."""
    order = "<" if data[:2] == b"II" else ">"
    big = data[2:4] in (b"+\0", b"\0+")
    code, field, entry = ("Q", "HHQQ", 20) if big else ("I", "HHII", 12)
    try:
        (start,) = struct.unpack_from(order + code, data, 8 if big else 4)
        (count,) = struct.unpack_from(order + ("Q" if big else "H"), data, start)
        at = start + (8 if big else 2) + entry * dice.randrange(min(count, 40))
        values = list(struct.unpack_from(order + field, data, at))
        which = dice.randrange(4)
        small = [each for each in EXTREMES if each < 1 << 16]
        extreme = dice.choice(small if which < 2 else EXTREMES)
        values[which] = extreme if dice.random() < 0.7 else dice.randrange(0x150 if which == 0 else 20)
        result = bytearray(data)
        struct.pack_into(order + field, result, at, *values)
        return bytes(result)
    except (struct.error, ValueError, OverflowError):
        return change_bytes(data, data, dice)


def png_chunks(data: bytes) -> list[bytes]:
    """Kind and content of each chunk, the pixels decompressed."""
    pieces, at = [], len(PNG_MAGIC)
    while at + 12 <= len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        piece = data[at + 4 : at + 8 + size]
        if piece[:4] == b"IDAT":
            with contextlib.suppress(zlib.error):
                piece = b"idat" + zlib.decompress(piece[4:])
        pieces.append(piece)
        at += 12 + size
    return pieces


def jpeg_segments(data: bytes) -> list[bytes]:
    """Marker, length and content of each segment; the last one has the scans."""
    pieces, at = [], 2
    while at + 4 <= len(data) and data[at] == 0xFF and data[at + 1] != 0xDA:
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        pieces.append(data[at:end])
        at = end
    return [*pieces, data[at:]]


def riff_chunks(data: bytes) -> list[bytes]:
    """Name and content of each chunk."""
    pieces, at = [], 12
    while at + 8 <= len(data):
        size = int.from_bytes(data[at + 4 : at + 8], "little")
        pieces.append(data[at : at + 4] + data[at + 8 : at + 8 + size])
        at += 8 + size + size % 2
    return pieces


def join(kind: str, pieces: list[bytes]) -> bytes:
    """A file of these pieces, with lengths and checksums that fit."""
    if kind == "png":
        packed = [b"IDAT" + zlib.compress(each[4:], 1) if each[:4] == b"idat" else each for each in pieces]
        return PNG_MAGIC + b"".join(
            struct.pack(">I", max(len(each) - 4, 0)) + each + struct.pack(">I", zlib.crc32(each))
            for each in packed
        )
    if kind == "webp":
        body = b"".join(
            each[:4] + struct.pack("<I", max(len(each) - 4, 0)) + each[4:] + bytes(len(each) % 2)
            for each in pieces
        )
        return b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WEBP" + body
    head = [each[:2] + struct.pack(">H", (len(each) - 2) & 0xFFFF) + each[4:] for each in pieces[:-1]]
    return b"\xff\xd8" + b"".join(head) + pieces[-1]
