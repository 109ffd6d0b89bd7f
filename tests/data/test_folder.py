"""Folders of images: labels, names without paths, resizing, broken files, and bad input in one sentence."""

from __future__ import annotations

import os
import re
import shutil
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as T

from longvis_bench.data.folder import IMAGENET, Folder, order_doubt
from longvis_bench.data.protocol import open_data
from longvis_bench.data.resize import finish, fit
from longvis_bench.errors import DataError, UnknownName
from longvis_bench.records import DataSpec

MEAN, DEVIATION = IMAGENET

Pictures = Callable[..., Path]


def test_labels_are_class_names_in_order(pictures: Pictures) -> None:
    data = Folder(str(pictures({"dog": 3, "cat": 4, "ant": 1})))
    assert (data.classes, data.num_classes) == (("ant", "cat", "dog"), 3)
    assert (data.size("train"), data.size("val")) == (8, 6)
    assert data.batch("train", range(8), 8)[1].tolist() == [0, 1, 1, 1, 1, 2, 2, 2]


def test_batch_is_what_torchvision_makes_of_the_file(pictures: Pictures) -> None:
    root = pictures(size=(30, 44))
    for resolution in (16, 80):
        images, _ = Folder(str(root)).batch("train", [1], resolution)
        picture = Image.open(root / "train" / "cat" / "001.png")
        cut = T.center_crop(T.resize(picture, [resolution], InterpolationMode.BICUBIC), [resolution])
        expected = T.normalize(T.to_tensor(cut), list(MEAN), list(DEVIATION))
        # Pillow and torch round their 8-bit kernels differently
        assert torch.allclose(images[0], expected, atol=1.5 / 255 / min(DEVIATION))


@pytest.mark.parametrize(("size", "resolution"), [((30, 44), 80), ((90, 70), 32), ((33, 33), 33)])
def test_8_bit_and_float_resizing_agree(size: tuple[int, int], resolution: int) -> None:
    image = torch.randint(80, 176, (3, *size), dtype=torch.uint8)
    exact = fit(image.float() / 255, resolution)
    assert (exact - fit(image, resolution).float() / 255).abs().max() <= 1.5 / 255
    noise = torch.randint(0, 256, (3, *size), dtype=torch.uint8)  # overshoots, the worst there is
    difference = (fit(noise.float() / 255, resolution) - fit(noise, resolution).float() / 255).abs()
    assert difference.mean() < 1 / 255


def test_shrinking_is_antialiased() -> None:
    stripes = (torch.arange(512) % 2 * 255).to(torch.uint8).expand(1, 512, 512)
    shrunk = fit(stripes, 32).float()
    assert (shrunk - 127.5).abs().max() < 4


def test_grey_and_16_bit_images_share_a_batch_with_colour() -> None:
    grey, deep = torch.full((1, 8, 8), 51, dtype=torch.uint8), torch.full((1, 4, 4), 0.2)
    colour = torch.full((3, 8, 8), 51, dtype=torch.uint8)
    batch = finish([grey, deep, colour], 8, [0.0] * 3, [1.0] * 3, dtype=torch.bfloat16)
    assert (batch.shape, batch.dtype) == ((3, 3, 8, 8), torch.bfloat16)
    assert torch.allclose(batch.float(), torch.tensor(0.2), atol=1e-3)


def test_name_holds_no_path_and_follows_the_content(pictures: Pictures, tmp_path: Path) -> None:
    root = pictures()
    name = Folder(str(root)).name
    assert re.fullmatch(r"folder:pets-[0-9a-f]{8}", name)
    copy = shutil.copytree(root, tmp_path / "elsewhere" / "pets")
    assert Folder(str(copy)).name == name
    assert Folder(str(root), window=(0, 10)).name != name
    (copy / "val" / "cat" / "001.png").write_bytes(b"x")
    assert Folder(str(copy)).name != name


def test_a_list_picks_classes(pictures: Pictures, tmp_path: Path) -> None:
    root = str(pictures({"ant": 1, "bee": 2, "cat": 3}))
    (tmp_path / "list.txt").write_text("# two of them\ncat\n\nant # small\n")
    data = Folder(root, classes=str(tmp_path / "list.txt"))
    assert (data.classes, data.size("train")) == (("cat", "ant"), 4)
    assert data.name != Folder(root).name


def test_a_lists_order_is_that_of_the_labels(pictures: Pictures, tmp_path: Path) -> None:
    root = str(pictures({"blue": 1, "green": 1, "red": 1}))
    (tmp_path / "order.txt").write_text("red\ngreen\nred\nblue\n")
    data = Folder(root, classes=str(tmp_path / "order.txt"))
    assert data.classes == ("red", "green", "blue")
    assert [data.load("val", index, 8)[1] for index in range(6)] == [0, 0, 1, 1, 2, 2]
    assert data.name != Folder(root).name


@pytest.mark.parametrize("start", ["", "\ufeff"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_lists_as_editors_write_them(pictures: Pictures, tmp_path: Path, start: str, end: str) -> None:
    """With a byte order mark, with Windows' line ends, and with `#` within names and before comments."""
    root = str(pictures({"c#": 1, "#1": 1, "a #b": 1, "f": 1}))
    lines = ["f # a comment", "c#", "", "# another", "#1", "a #b"]
    (tmp_path / "list.txt").write_bytes((start + end.join(lines)).encode())
    assert Folder(root, classes=str(tmp_path / "list.txt")).classes == ("f", "c#", "#1", "a #b")


@pytest.mark.parametrize(("folder", "line"), [("NFD", "NFC"), ("NFC", "NFD")])
def test_a_list_matches_accents_in_either_form(
    pictures: Pictures, tmp_path: Path, folder: Literal["NFC", "NFD"], line: Literal["NFC", "NFD"]
) -> None:
    """Archives made on macOS have folders with decomposed accents; editors write composed ones."""
    name = unicodedata.normalize(folder, "Käfer")
    (tmp_path / "list.txt").write_text(f"{unicodedata.normalize(line, 'Käfer')}  # a beetle\nf\n")
    root = str(pictures({name: 1, "f": 1}))
    assert Folder(root, classes=str(tmp_path / "list.txt")).classes == (name, "f")


def test_a_folder_without_its_prefix_is_recognised(pictures: Pictures) -> None:
    name = pictures().name
    for spec in (name, f"./{name}", "/data/not-there"):
        with pytest.raises(UnknownName, match=f"write folder:{spec}"):
            open_data(spec)


def test_a_doubt_about_the_order_shows_where_it_begins() -> None:
    names = [f"c{number:02}" for number in range(1, 9)] + ["c1000", "c99"]
    said = order_doubt(names)
    assert said is not None
    assert "(c08, c1000, c99)" in said
    assert "natural order (c08, c99, c1000)" in said


@pytest.mark.parametrize(
    ("names", "natural"),
    [
        (("1", "10", "2"), ["1", "2", "10"]),
        (("c1", "c10", "c9b"), ["c1", "c9b", "c10"]),
        (("001", "002", "010"), ["001", "002", "010"]),
        (("Eel", "cat", "dog"), ["cat", "dog", "Eel"]),
    ],
)
def test_classes_in_natural_order_are_those_of_timm(
    pictures: Pictures, names: tuple[str, ...], natural: list[str]
) -> None:
    from timm.utils.misc import natural_key

    root = str(pictures(dict.fromkeys(names, 1)))
    assert Folder(root).classes == names
    assert Folder(root, class_order="natural").classes == tuple(natural)
    assert natural == sorted(names, key=natural_key)
    assert (order_doubt(names) is None) == (list(names) == natural)


def test_imagenet100_ships(tmp_path: Path) -> None:
    listed = (Path(__file__).parents[2] / "longvis_bench" / "data" / "imagenet100.txt").read_text().split()
    assert (len(listed), len(set(listed))) == (100, 100)
    assert all(re.fullmatch(r"n\d{8}", name) for name in listed)
    for split in ("train", "val"):
        for name in [*listed, "n99999999"]:
            (tmp_path / "imagenet" / split / name).mkdir(parents=True)
            Image.new("RGB", (4, 4)).save(tmp_path / "imagenet" / split / name / "a.JPEG", "JPEG")
    data = open_data(DataSpec(f"folder:{tmp_path / 'imagenet'}", "imagenet100"))
    assert (data.num_classes, data.size("val")) == (100, 100)


def test_hidden_files_and_other_suffixes_are_no_images_and_subfolders_count(pictures: Pictures) -> None:
    root = pictures()
    before = Folder(str(root)).size("train")
    for name in (".hidden.png", "notes.txt"):
        (root / "train" / "cat" / name).write_text("x")
    (root / "train" / "cat" / "more").mkdir()
    Image.new("L", (4, 4)).save(root / "train" / "cat" / "more" / "x.TIF", "TIFF")
    assert Folder(str(root)).size("train") == before + 1


def test_broken_files_are_named_counted_and_left_out(pictures: Pictures) -> None:
    root = pictures({"cat": 150, "dog": 150})
    (root / "train" / "cat" / "003.png").write_bytes(b"broken")
    data = Folder(str(root))
    images, labels = data.batch("train", [2, 3, 4], 8)
    assert (len(images), labels.tolist()) == (2, [0, 0])
    assert list(data.broken) == ["train/cat/003.png"]
    data.batch("train", [3], 8)
    assert len(data.broken) == 1


def test_more_than_one_percent_broken_stops(pictures: Pictures) -> None:
    root = pictures({"cat": 50, "dog": 50})
    for number in (1, 2):
        (root / "train" / "cat" / f"{number:03}.png").write_bytes(b"broken")
    data = Folder(str(root))
    data.batch("train", [1], 8)
    with pytest.raises(DataError, match=r"2 of 100 images cannot be read, more than 1%, .*cat/002\.png"):
        data.batch("train", [2], 8)


def test_a_window_reaches_the_pixels(pictures: Pictures) -> None:
    root = pictures()
    for path in root.rglob("*.png"):
        Image.fromarray(np.full((4, 4), 1500, dtype=np.uint16)).save(path)
    data = Folder(str(root), window=(1000, 2000))
    images, _ = data.batch("val", [0], 8)
    assert torch.allclose(images[0, :, 0, 0], (0.5 - torch.tensor(MEAN)) / torch.tensor(DEVIATION), atol=1e-4)


def _without(name: str) -> Callable[[Path], object]:
    return lambda root: shutil.rmtree(root / name)


def _empty(name: str) -> Callable[[Path], object]:
    def spoil(root: Path) -> None:
        for path in (root / name).iterdir():
            path.unlink()

    return spoil


def _only(root: Path) -> None:
    for split in ("train", "val"):
        shutil.rmtree(root / split / "dog")


def _flat(root: Path) -> None:
    for name in ("cat", "dog"):
        shutil.rmtree(root / "val" / name)
    (root / "val" / "1.png").write_bytes(b"")


BAD: tuple[tuple[Callable[[Path], Any], str], ...] = (
    (_without("val"), "has no val/ (nor valid/, validation/, test/): a data set is train/ and val/"),
    (_only, "train/ has only one class (cat)"),
    (lambda root: [_empty(f"val/{name}")(root) for name in ("cat", "dog")], "val/ has no images"),
    (_empty("train/cat"), "the class cat has no images in train/"),
    (_without("train/dog"), "val/ has classes that train/ does not have: dog"),
    (_flat, "val/ has no class folders"),
    (shutil.rmtree, "there is no folder"),
)


@pytest.mark.parametrize(("spoil", "message"), BAD)
def test_bad_folders(spoil: Callable[[Path], Any], message: str, pictures: Pictures) -> None:
    root = pictures()
    spoil(root)
    with pytest.raises(DataError, match=re.escape(message)):
        Folder(str(root))


def test_bad_options(pictures: Pictures, tmp_path: Path) -> None:
    root = str(pictures({"cat": 1, "dog": 1}))
    (tmp_path / "list").write_text("cat\ndogs\n")
    with pytest.raises(UnknownName, match="unknown class 'dogs': did you mean dog"):
        Folder(root, classes=str(tmp_path / "list"))
    (tmp_path / "list").write_text("cat\n")
    with pytest.raises(DataError, match="has only one class"):
        Folder(root, classes=str(tmp_path / "list"))
    with pytest.raises(UnknownName, match="did you mean imagenet100"):
        Folder(root, classes="imagenet-100")
    with pytest.raises(DataError, match="LO has to be below HI"):
        Folder(root, window=(5, 5))
    with pytest.raises(DataError, match="--classes is for folder:PATH"):
        open_data(DataSpec("digits", "imagenet100"))
    with pytest.raises(DataError, match="--window is for folder:PATH"):
        open_data(DataSpec("digits", window=(0, 1)))
    with pytest.raises(DataError, match="needs a path"):
        open_data("folder:")


# What people bring


def test_held_out_images_alone_are_enough_for_an_evaluation(pictures: Pictures) -> None:
    root = pictures()
    shutil.rmtree(root / "train")
    data = Folder(str(root))
    assert (data.classes, data.size("train"), data.size("val"), data.notes) == (("cat", "dog"), 0, 4, ())
    assert data.batch("val", [3], 8)[1].tolist() == [1]


@pytest.mark.parametrize("name", ["valid", "validation", "test"])
def test_other_names_of_held_out_images_are_found_and_named(name: str, pictures: Pictures) -> None:
    root = pictures({"cat": 1, "dog": 1}, val=150)
    (root / "val").rename(root / name)
    data = Folder(str(root))
    assert data.notes == (f"the held-out images are those of {name}/",)
    (root / name / "cat" / "000.png").write_bytes(b"broken")
    assert data.batch("val", [0, 1], 8)[1].tolist() == [0]
    assert list(data.broken) == [f"{name}/cat/000.png"]


def test_of_two_folders_of_held_out_images_the_note_says_which_is_read(pictures: Pictures) -> None:
    root = pictures()
    (root / "val").rename(root / "valid")
    shutil.copytree(root / "valid", root / "test")
    assert Folder(str(root)).notes == ("the held-out images are those of valid/; test/ is not read",)


def test_a_class_without_held_out_images_is_noted(pictures: Pictures) -> None:
    root = pictures({"ant": 1, "bee": 1, "cat": 1})
    shutil.rmtree(root / "val" / "bee")
    data = Folder(str(root))
    assert (data.num_classes, data.size("val")) == (3, 4)
    assert [data.load("val", index, 8)[1] for index in range(4)] == [0, 0, 2, 2]
    assert data.notes == (
        "val/ has no images of 1 of 3 classes (bee), so the accuracy is that of the others",
    )


def test_images_written_again_in_place_change_the_name(pictures: Pictures) -> None:
    root = pictures()
    name, image = Folder(str(root)).name, root / "val" / "cat" / "000.png"
    before = image.stat()
    os.utime(image, (before.st_atime, before.st_mtime + 2))
    assert Folder(str(root)).name != name
    os.utime(image, (before.st_atime, before.st_mtime))
    assert Folder(str(root)).name == name
    assert Folder(str(root), bands=(1,)).name != name


@pytest.mark.parametrize("suffix", ["webp", "bmp", "gif", "jp2", "jfif", "jpe"])
def test_further_suffixes_are_read(suffix: str, pictures: Pictures) -> None:
    root = pictures()
    grey = Image.fromarray(np.full((6, 7), 200, dtype=np.uint8))
    options = {"save_all": True, "append_images": [Image.new("L", (7, 6))]} if suffix == "gif" else {}
    form = {"jfif": "JPEG", "jpe": "JPEG", "jp2": "JPEG2000"}.get(suffix, suffix.upper())
    grey.save(root / "val" / "cat" / f"zzz.{suffix.upper()}", form, **options)
    data = Folder(str(root))
    assert (data.size("val"), data.notes) == (5, ())
    pixels, label = data.load("val", 2, 8)
    assert (label, pixels.shape[1:]) == (0, (6, 7))
    assert (pixels.float() - 200).abs().max() <= 2  # of the GIF the first frame, not the black one


def test_files_of_other_kinds_are_counted(pictures: Pictures) -> None:
    root = pictures()
    for name in ("a.heic", "b.HEIC", "list.txt", "LICENSE", "Thumbs.db", ".hidden"):
        (root / "val" / "cat" / name).write_bytes(b"")
    assert Folder(str(root)).notes == (
        "4 files are left out because of their kind: 2 .heic, 1 .txt, 1 without a suffix",
    )


@pytest.mark.parametrize("name", ["@eaDir", "__MACOSX", "lost+found"])
def test_folders_of_file_servers_and_archivers_are_skipped(name: str, pictures: Pictures) -> None:
    root = pictures()
    expected = Folder(str(root)).name
    for parent in ("train", "val", "val/cat"):
        (root / parent / name).mkdir()
        (root / parent / name / "000.png").write_bytes(b"no image")
    data = Folder(str(root))
    assert (data.name, data.classes, data.notes) == (expected, ("cat", "dog"), ())


def _enlarged_to(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The pixels of every enlarged image."""
    sizes: list[int] = []
    real = torch.nn.functional.interpolate

    def seen(image: torch.Tensor, size: tuple[int, int], **options: Any) -> torch.Tensor:
        sizes.append(size[0] * size[1])
        return real(image, size, **options)

    monkeypatch.setattr(torch.nn.functional, "interpolate", seen)
    return sizes


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("short", [1, 5, 20])
def test_long_images_are_cropped_before_they_are_enlarged(
    short: int, turned: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = torch.rand(1, short, 400)
    whole = torch.nn.functional.interpolate(
        image[None], (80, 400 * 80 // short), mode="bicubic", antialias=True, align_corners=False
    )[0].clamp(0, 1)
    left = (whole.shape[2] - 80) // 2
    expected = whole[..., left : left + 80]
    sizes = _enlarged_to(monkeypatch)
    found = fit(image.mT if turned else image, 80)
    assert torch.allclose(found.mT if turned else found, expected, atol=1e-4)
    assert max(sizes) <= 80 * 80 * 9  # of short 1, 8 px are kept; else hardly more than four squares


def test_4000_x_20_px_stay_small(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = _enlarged_to(monkeypatch)
    assert fit(torch.zeros(3, 20, 4000, dtype=torch.uint8), 1024).shape == (3, 1024, 1024)
    assert max(sizes) < 5 * 1024 * 1024  # 200 * 1024 * 1024 without the crop
