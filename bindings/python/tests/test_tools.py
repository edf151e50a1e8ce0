"""``inspect``, ``doctor`` and the pictures they read."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import FIXTURES
from PIL import Image

import facegrad
from facegrad import packs
from facegrad.__main__ import main
from facegrad.images import ImageError, image_files, read_image
from facegrad.sheet import comparison_sheet

ROOT = FIXTURES / "evaluate"


@pytest.fixture(scope="module")
def root(data):
    assert (ROOT / "models/buffalo_sc").is_dir(), "run `make fixtures`"
    return ROOT


def inspect(root, *arguments, sheet=""):
    return main(["inspect", *map(str, arguments), "--pack", "buffalo_sc", "--root", str(root), "--sheet", str(sheet)])


def test_every_kind_of_picture_is_the_same_picture(data, tmp_path):
    source = Image.open(data / "photos/single_astronaut.png").convert("RGB")
    want = np.asarray(source)

    def read(name, image=None, **options):
        if image is not None:
            image.save(tmp_path / name, **options)
        return read_image(tmp_path / name).permute(1, 2, 0).numpy()

    assert np.array_equal(read("rgb.png", source), want)
    turned = source.transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6  # "turn me clockwise"
    assert np.array_equal(read("exif.png", turned, exif=exif), want)
    assert np.array_equal(read("alpha.png", Image.merge("RGBA", [*source.split(), Image.new("L", source.size, 255)])), want)
    clear = Image.merge("RGBA", [*source.split(), Image.new("L", source.size, 0)])
    assert (read("clear.png", clear) == 255).all()
    grey = np.asarray(source.convert("L"))
    assert np.array_equal(read("grey.png", Image.fromarray(grey)), np.repeat(grey[..., None], 3, 2))
    deep = read("deep.png", Image.fromarray(grey.astype(np.uint16) * 257))
    assert np.array_equal(deep[..., 0], grey)
    assert read("palette.png", source.convert("P")).shape == want.shape
    assert read("cmyk.jpg", source.convert("CMYK")).shape == want.shape
    panorama = read("panorama.png", Image.new("RGB", (20000, 40)))
    assert panorama.shape == (40, 20000, 3)


def test_what_cannot_be_read_says_so_in_a_sentence(data, tmp_path, monkeypatch):
    whole = (data / "photos/C_obama_1.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.jpg").write_text("not a picture")
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "nothing").mkdir()
    for name, words in (
        ("cut.jpg", "damaged or cut off"),
        ("text.jpg", "not a picture"),
        ("empty.png", "not a picture"),
        ("no.jpg", "no such file"),
    ):
        with pytest.raises(ImageError, match=words):
            read_image(tmp_path / name)
    with pytest.raises(ImageError, match="no pictures in this folder"):
        image_files([tmp_path / "nothing"])
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(ImageError, match="too large.*scale it down"):
        read_image(data / "photos/C_obama_1.jpg")


def test_inspect_tells_and_its_exit_code_too(root, data, tmp_path, capsys):
    photos = data / "photos"
    sheet = tmp_path / "out/sheet.png"
    assert inspect(root, photos / "C_obama_1.jpg", photos / "C_obama_2.jpg", photos / "A_dad_1.jpg", sheet=sheet) == 0
    out = capsys.readouterr().out
    assert "C_obama_1.jpg" in out and "0.7" in out and str(sheet) in out
    drawn = np.asarray(Image.open(sheet))
    assert drawn.shape[1] == 1180 and drawn.std() > 20
    assert inspect(root, photos) == 4
    assert "noface_cat.png" in capsys.readouterr().out
    assert inspect(root, photos / "A_dad_1.jpg", "--no-retry") == 4
    (tmp_path / "bad.jpg").write_text("x")
    assert inspect(root, tmp_path / "bad.jpg", photos / "C_obama_1.jpg") == 3
    assert "not a picture" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert inspect(root, tmp_path / "empty") == 3
    assert main(["inspect", str(photos), "--root", str(tmp_path)]) == 5
    assert "download buffalo_l" in capsys.readouterr().err
    assert inspect(root, photos / "C_obama_1.jpg", "--provider", "cuda") == 5
    with pytest.raises(SystemExit) as wrong:
        main(["inspect"])
    assert wrong.value.code == 2
    with pytest.raises(SystemExit):
        main(["inspect", "--help"])
    assert "exit codes" in capsys.readouterr().out


def test_a_training_steps_sheet(root, data, tmp_path):
    evaluator = facegrad.ArcFaceLoss("buffalo_sc", root=root).evaluator
    reference = read_image(data / "photos/single_astronaut.png")[None]
    images = torch.cat([reference, torch.zeros_like(reference)]).float() / 255
    comparison_sheet(tmp_path / "step.png", evaluator, reference, images)
    assert Image.open(tmp_path / "step.png").size[0] == 1180


def test_doctor_is_content_or_says_what_to_do(root, tmp_path, capsys, monkeypatch):
    for stand_in in ("buffalo_sc/w600k_mbf.onnx", "buffalo_l/w600k_r50.onnx"):
        monkeypatch.setitem(packs.KNOWN_FILES, packs.sha256(root / "models" / stand_in), (stand_in, "a licence"))
    assert main(["doctor", "--root", str(root)]) == 0
    out = capsys.readouterr().out
    assert f"libfacegrad_torch.so, compiled for torch {torch.__version__.partition('+')[0]}" in out
    assert "self-test     loss" in out and "det_500m.onnx" in out and "non-commercial research" in out
    assert main(["doctor", "--root", str(tmp_path)]) == 1
    assert "FAIL  models" in (out := capsys.readouterr().out) and "facegrad download buffalo_l" in out
