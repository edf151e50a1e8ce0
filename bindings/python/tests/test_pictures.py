"""Pictures as cameras, scanners and editors write them, broken metadata and all."""

from __future__ import annotations

import io
import os
import random
import struct
import weakref
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from facegrad.commands import inspect as command
from facegrad.images import ImageError, image_files, read_image

GREY = np.linspace(0, 1, 16).reshape(4, 4)
RGB = np.stack([GREY, GREY.T, 1 - GREY], -1)


# Metadata


def jpeg_with(path, entries, extra=b""):
    """A photograph 64 wide and 32 high with EXIF entries (tag, type, count, four bytes)."""
    out = io.BytesIO()
    Image.new("RGB", (64, 32), (9, 99, 199)).save(out, "JPEG")
    plain = out.getvalue()
    rows = b"".join(struct.pack("<HHI", *entry[:3]) + entry[3] for entry in entries)
    body = b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + rows + bytes(4) + extra
    path.write_bytes(plain[:2] + b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body + plain[2:])
    return path


@pytest.mark.parametrize("tag", [0x010E, 0x011A, 0x011B, 0x0131, 0x927C, 0x8769, 0x8825, 0xA005])
@pytest.mark.parametrize("kind", range(14))
def test_a_photograph_with_broken_exif_is_read_and_turned(tmp_path, tag, kind):
    turn = (0x0112, 3, 1, struct.pack("<I", 6))
    for count, value in ((1, struct.pack("<i", -1)), (1, struct.pack("<I", 8 + 2 + 24 + 4)), (2**31, b"\xff" * 4), (0, bytes(4))):
        path = jpeg_with(tmp_path / "a.jpg", sorted([turn, (tag, kind, count, value)]), struct.pack("<ii", -1, 0))
        assert read_image(path).shape == (3, 64, 32)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_a_broken_block_of_metadata_never_raises_anything_but_a_sentence(tmp_path, format):
    exif = Image.Exif()
    exif[0x0112], exif[0x011A], exif[0x010E], exif[0x927C] = 6, 72.0, "x", b"maker"
    exif.get_ifd(0x8769)[0x829A] = 0.5
    exif.get_ifd(0x8825)[2] = (1.0, 2.0, 3.0)
    out = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 255, (32, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(out, format, exif=exif, **({"lossless": True} if format == "WEBP" else {}))
    whole = out.getvalue()
    block = exif.tobytes().removeprefix(b"Exif\0\0")
    start = struct.unpack("<I", whole[4:8])[0] if format == "TIFF" else whole.index(block[:8])
    length = len(whole) - start if format == "TIFF" else len(block)
    path, dice, read = tmp_path / "a.img", random.Random(0), 0
    for round in range(250):
        data = bytearray(whole)
        for _ in range(dice.choice((1, 1, 2, 8)) if round else 0):
            data[start + dice.randrange(length)] = dice.choice((0, 1, 255, dice.randrange(256)))
        if format == "PNG":
            at = data.index(b"eXIf")
            end = at + 4 + struct.unpack(">I", data[at - 4 : at])[0]
            data[end : end + 4] = struct.pack(">I", zlib.crc32(data[at:end]))
        path.write_bytes(data)
        try:
            shape = read_image(path).shape
            # A TIFF's width and height are metadata too.
            assert shape in ((3, 64, 32), (3, 32, 64)) or format == "TIFF"
            read += 1
        except ImageError:
            # A TIFF's metadata are what the picture is read by.
            assert format == "TIFF"
    assert read > 200


# Sample formats


def tiff(path, samples, photometric=1, kind=1, order="<", extra=None):
    """Uncompressed, one strip; ``kind``: 1 unsigned, 2 signed, 3 floating."""
    samples = samples if samples.ndim == 3 else samples[..., None]
    height, width, count = samples.shape
    data = samples.astype(samples.dtype.newbyteorder(order)).tobytes()
    entries = [
        (256, "I", [width]), (257, "I", [height]), (258, "H", [samples.dtype.itemsize * 8] * count), (259, "H", [1]),
        (262, "H", [photometric]), (273, "I", [8]), (277, "H", [count]), (278, "I", [height]), (279, "I", [len(data)]),
        *([(338, "H", [extra])] if extra is not None else []), (339, "H", [kind] * count),
    ]  # fmt: skip
    at = 8 + len(data) + 2 + 12 * len(entries) + 4
    rows = tail = b""
    for tag, letter, values in entries:
        packed = struct.pack(f"{order}{len(values)}{letter}", *values)
        rows += struct.pack(order + "HHI", tag, {"H": 3, "I": 4}[letter], len(values))
        rows += packed.ljust(4, b"\0") if len(packed) <= 4 else struct.pack(order + "I", at + len(tail))
        tail += packed if len(packed) > 4 else b""
    header = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", 8 + len(data))
    path.write_bytes(header + data + struct.pack(order + "H", len(entries)) + rows + bytes(4) + tail)
    return path


def shows(path, want):
    got = read_image(path).permute(1, 2, 0).numpy().astype(int)
    want = np.repeat(want[..., None], 3, 2) if want.ndim == 2 else want
    assert np.abs(got - np.round(want * 255)).max() <= 1


FULL = {"u1": 2**8 - 1, "u2": 2**16 - 1, "u4": 2**32 - 1, "i1": 2**7 - 1, "i2": 2**15 - 1, "i4": 2**31 - 1, "f4": None}
KINDS = {"u": 1, "i": 2, "f": 3}


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("dtype", FULL)
@pytest.mark.parametrize("white_is_zero", [False, True])
def test_a_grey_tiff_of_any_samples_is_scaled_by_their_range_or_refused(tmp_path, dtype, order, white_is_zero):
    shown = 1 - GREY if white_is_zero else GREY
    samples = shown if FULL[dtype] is None else np.round(shown * FULL[dtype])
    path = tiff(tmp_path / "a.tif", samples.astype(dtype), 0 if white_is_zero else 1, KINDS[dtype[0]], order)
    try:
        shows(path, GREY)
    except ImageError as error:
        # Not every one of them is known to Pillow.
        assert (white_is_zero or (dtype, order) == ("u4", ">")) and "not a picture that Pillow knows" in str(error)


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("dtype", ["u1", "u2"])
def test_a_tiff_in_colour_is_scaled_and_its_transparent_parts_are_white(tmp_path, dtype, order):
    full = FULL[dtype]
    shows(tiff(tmp_path / "a.tif", np.round(RGB * full).astype(dtype), 2, order=order), RGB)
    for extra, colours in ((0, RGB), (1, RGB / 2), (2, RGB)):
        samples = np.concatenate([colours, np.full((4, 4, 1), 0.5)], -1)
        path = tiff(tmp_path / "a.tif", np.round(samples * full).astype(dtype), 2, order=order, extra=extra)
        shows(path, RGB / 2 + 0.5 if extra else RGB)


def test_a_dark_scan_of_16_bits_stays_dark(tmp_path):
    shows(tiff(tmp_path / "a.tif", np.full((4, 4), 200, "u2")), np.full((4, 4), 200 / 65535))
    shows(tiff(tmp_path / "a.tif", np.full((4, 4), -5, "i2"), kind=2), np.zeros((4, 4)))


def test_floats_are_taken_for_the_range_that_they_show_and_the_log_says_so(tmp_path, caplog):
    caplog.set_level("INFO", "facegrad")
    bright = np.clip(GREY * 1.5, 0, 1)
    for samples, want, full in ((GREY, GREY, "1"), (GREY * 1.5, bright, "1"), (GREY * 255, GREY, "255"), (GREY * 65535, GREY, "65535")):
        caplog.clear()
        shows(tiff(tmp_path / "a.tif", samples.astype("f4"), kind=3), want)
        assert f"taken as 0 to {full}" in caplog.text
    holes = np.where(GREY > 0.9, np.nan, GREY)
    shows(tiff(tmp_path / "a.tif", holes.astype("f4"), kind=3), np.nan_to_num(holes))


def png(path, bits, colour, samples, transparent=b""):
    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    def row(values):
        text = "".join(f"{int(value):0{bits}b}" for value in values.ravel())
        return b"\0" + int(text.ljust(-(-len(text) // 8) * 8, "0"), 2).to_bytes(-(-len(text) // 8), "big")

    header = struct.pack(">IIBBBBB", samples.shape[1], samples.shape[0], bits, colour, 0, 0, 0)
    parts = [chunk(b"IHDR", header), chunk(b"tRNS", transparent) if transparent else b""]
    parts += [chunk(b"IDAT", zlib.compress(b"".join(map(row, samples)))), chunk(b"IEND", b"")]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    return path


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_a_png_of_any_bits_is_scaled_by_their_range(tmp_path, bits):
    full = 2**bits - 1
    grey = np.round(GREY * full)
    shows(png(tmp_path / "a.png", bits, 0, grey), grey / full)
    if bits < 8:
        return
    shows(png(tmp_path / "a.png", bits, 0, grey, struct.pack(">H", int(grey[1, 1]))), np.where(grey == grey[1, 1], 1, grey / full))
    colours = np.round(RGB * full)
    shows(png(tmp_path / "a.png", bits, 2, colours), RGB)
    clear = RGB.copy()
    clear[1, 1] = 1
    shows(png(tmp_path / "a.png", bits, 2, colours, struct.pack(">HHH", *map(int, colours[1, 1]))), clear)
    half = np.full((4, 4, 1), 0.5)
    shows(png(tmp_path / "a.png", bits, 6, np.round(np.concatenate([RGB, half], -1) * full)), RGB / 2 + 0.5)
    shows(png(tmp_path / "a.png", bits, 4, np.round(np.concatenate([GREY[..., None], half], -1) * full)), GREY / 2 + 0.5)


# Files


def test_what_is_no_file_is_refused_and_never_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "folder.jpg").mkdir()
    for name in ("pipe.jpg", "folder.jpg"):
        with pytest.raises(ImageError, match="expected a file"):
            read_image(tmp_path / name)


def test_names_of_any_bytes_and_links_are_read(tmp_path):
    name = os.fsencode(tmp_path) + b"/na\xffme.png"
    Image.new("RGB", (8, 4)).save(os.fsdecode(name))
    (tmp_path / "link.png").symlink_to(os.fsdecode(name))
    (tmp_path / "folder").symlink_to(tmp_path, target_is_directory=True)
    assert {os.fsencode(file.name) for file in image_files([tmp_path / "folder"])} == {b"na\xffme.png", b"link.png"}
    for path in (name, os.fsdecode(name), tmp_path / "folder/link.png"):
        assert read_image(path).shape == (3, 4, 8)
    with pytest.raises(ImageError) as error:
        read_image(name + b".gif")
    assert str(error.value).encode(), "a sentence that can be printed"


class Nobody:
    """An evaluator that finds no face, and nothing but an error in one picture."""

    def faces(self, images):
        if images.shape[-1] == 13:
            raise command.FacegradError(200, "out of memory", "too large for this machine")
        return [[]]

    def align(self, images, faces):
        return torch.zeros(0, 3, 112, 112)


def test_inspect_has_one_picture_in_memory_and_goes_on_after_a_bad_one(tmp_path, monkeypatch, capsys):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for at in range(4):
        Image.new("RGB", (1600, 1200)).save(folder / os.fsdecode(b"%d\xff.png" % at))
    Image.new("RGB", (13, 8)).save(folder / "1large.png")
    (folder / "2bad.png").write_bytes(b"no picture")
    jpeg_with(folder / "3exif.jpg", [(0x0112, 3, 1, struct.pack("<I", 6)), (0x011A, 10, 1, struct.pack("<I", 2**31))])
    alive = weakref.WeakSet()

    def read(path):
        assert not alive, "the picture before is still in memory"
        picture = read_image(path)
        alive.add(picture)
        return picture

    monkeypatch.setattr(command, "read_image", read)
    monkeypatch.setattr(command, "_evaluator", lambda arguments: Nobody())
    from facegrad.__main__ import main

    assert main(["inspect", str(folder), "--sheet", str(tmp_path / "sheet.png")]) == 3
    out, err = capsys.readouterr()
    assert out.count("no face was found") == 5 and "3exif.jpg" in out
    assert "2bad.png: not a picture" in err and "1large.png: too large for this machine" in err
    assert Image.open(tmp_path / "sheet.png").size[0] == 1180
