# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Image files of every kind: read as users expect, or refused by name; broken ones in training."""

import logging
import os

import cv2
import numpy as np
import pytest
from detectron2.data import DatasetCatalog
from PIL import Image

from d2kd.data import build_mapper, register_custom_datasets
from d2kd.data.datasets import image_files as images
from d2kd.engine import DistillTrainer
from d2kd.utils.errors import DatasetError
from tests.common.helpers import plain_cfg
from tests.common.toy_sets import make_cfg, write_xml

NOISE = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)


def load(declaration, **inputs):
    cfg = make_cfg(train=["toy"], toy=declaration)
    cfg.INPUT.update(inputs)
    register_custom_datasets(cfg)
    return DatasetCatalog.get("toy")


@pytest.mark.parametrize("mode", ["L", "CMYK", "P", "1", "LA", "RGBA"])
def test_modes_that_are_converted(root, voc, mode):
    folder, name = root / "toy/jpg", "a.tif" if mode == "CMYK" else "a.png"
    (folder / "a.jpg").unlink()
    path = root / "toy/xml/a.xml"
    path.write_text(path.read_text().replace("<size>", f"<filename>{name}</filename><size>"))
    Image.fromarray(NOISE).convert("L" if mode == "LA" else "RGB").convert(mode).save(folder / name)
    record = load(voc)[0]
    image = build_mapper(plain_cfg("INPUT.MIN_SIZE_TRAIN", [0]), True)(record)["image"]
    assert image.shape == (3, 48, 64) and image.float().std() > 30
    if mode in ("L", "LA", "1"):
        assert (image[0] == image[1]).all() and (image[0] == image[2]).all()


@pytest.mark.parametrize("values", [np.uint16, np.int32, np.float32])
def test_more_than_eight_bits_are_refused_for_they_would_turn_white(root, voc, values):
    (root / "toy/jpg/a.jpg").unlink()
    path = root / "toy/xml/a.xml"
    path.write_text(path.read_text().replace("<size>", "<filename>a.tif</filename><size>"))
    Image.fromarray(NOISE[..., 0].astype(values) * 200).save(root / "toy/jpg/a.tif")
    with pytest.raises(DatasetError, match="a.tif .*more than 8 bits.*Convert it to 8 bits"):
        load(voc)


def _write_deep(path, channels, kind):
    """A file of 16 bits a channel; values of 12 bits, as cameras give."""
    pixels = NOISE.astype(np.uint16)[..., :1].repeat(channels, axis=2) * 16
    path.parent.mkdir(exist_ok=True)
    assert cv2.imwrite(str(path), pixels, kind)


@pytest.mark.parametrize(
    "name, channels, kind",
    [
        ("a.png", 3, ()),
        ("a.png", 4, ()),
        ("a.tif", 3, ()),
        ("a.tif", 4, ()),
        ("a.tif", 3, (cv2.IMWRITE_TIFF_COMPRESSION, 1)),
        ("a.ppm", 3, ()),
    ],
)
def test_more_than_eight_bits_in_colour_are_refused_for_they_would_turn_black(
    root, voc, name, channels, kind
):
    (root / "toy/jpg/a.jpg").unlink()
    path = root / "toy/xml/a.xml"
    path.write_text(path.read_text().replace("<size>", f"<filename>{name}</filename><size>"))
    _write_deep(root / "toy/jpg" / name, channels, kind)
    with pytest.raises(DatasetError, match=f"{name} .*more than 8 bits.*Convert it to 8 bits"):
        load(voc)


def test_sixteen_bits_a_pixel_are_not_more_than_eight_a_channel():
    class Packed:
        mode, format = "RGB", "BMP"
        tile = [("raw", (0, 0, 64, 48), 54, ("BGR;16", 128, -1))]

    assert images._deep_mode(Packed(), "a.bmp") is None


@pytest.mark.parametrize("values, refused", [(np.uint8, False), (np.uint16, True)])
def test_jpeg_2000_states_its_bits_in_the_codestream(root, voc, values, refused):
    pixels = np.zeros((480, 640, 3), values)
    if not cv2.imwrite(str(root / "toy/jpg/a.jp2"), pixels):
        pytest.skip("no JPEG 2000 here")
    header = images.read_header
    if refused:
        with pytest.raises(DatasetError, match="RGB of 16 bits"):
            header(str(root / "toy/jpg/a.jp2"), "a.xml")
    else:
        assert header(str(root / "toy/jpg/a.jp2"), "a.xml").size == (640, 480)


def test_what_is_no_regular_file_is_refused_not_waited_for(root, voc):
    (root / "toy/jpg/a.jpg").unlink()
    os.mkfifo(root / "toy/jpg/c.png")
    path = root / "toy/xml/a.xml"
    path.write_text(path.read_text().replace("<size>", "<filename>c.png</filename><size>"))
    with pytest.raises(DatasetError, match="c.png .*no regular file"):
        load(voc)


def test_one_pixel_is_warned_of_and_trains(root, voc, caplog):
    Image.new("RGB", (1, 1)).save(root / "toy/jpg/a.jpg")
    write_xml(root / "toy/xml/a.xml", [("dog", (1, 1, 2, 2)), ("cat", (1, 1, 2, 2))], 1, 1)
    record = load(voc)[0]
    assert "toy: 1 images have a side of less than 8 pixels" in caplog.text
    assert record["annotations"][0]["bbox"] == [0, 0, 1, 1]
    sample = build_mapper(plain_cfg(), True)(record)
    assert sample["image"].shape == (3, 64, 64) and len(sample["instances"]) == 2


def test_images_that_vanish_when_resized_are_refused(root, voc):
    Image.new("RGB", (1500, 1)).save(root / "toy/jpg/a.jpg")
    write_xml(root / "toy/xml/a.xml", [("dog", (1, 1, 9, 2)), ("cat", (1, 1, 9, 2))], 1500, 1)
    with pytest.raises(DatasetError, match="a.jpg is 1500x1: with INPUT.MAX_SIZE_TRAIN 1333"):
        load(voc)


def test_without_resizing_nothing_vanishes(root, voc):
    Image.new("RGB", (1500, 1)).save(root / "toy/jpg/a.jpg")
    write_xml(root / "toy/xml/a.xml", [("dog", (1, 1, 9, 2)), ("cat", (1, 1, 9, 2))], 1500, 1)
    assert load(voc, MIN_SIZE_TRAIN=(0,), MIN_SIZE_TEST=0)[0]["width"] == 1500


def test_huge_images_are_warned_of(voc, caplog, monkeypatch):
    monkeypatch.setattr("d2kd.data.datasets.dataset_dicts.HUGE", 3000)
    load(voc)
    assert "toy: 2 images have more than" in caplog.text and "scale them down" in caplog.text


def test_images_that_pillow_refuses_are_named(voc, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(DatasetError, match="a.jpg .*is too large: .*tiles"):
        load(voc)


def test_pillows_own_warning_stays_away(voc, monkeypatch, recwarn):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2000)
    assert images.image_size(load(voc)[0]["file_name"], "a.xml") == (64, 48)
    assert not recwarn.list


def _truncate(path, keep=0.5):
    """Cut a file's end off; its header stays."""
    Image.fromarray(NOISE).save(path)
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content))])


def test_an_image_truncated_behind_its_header_is_named_when_it_is_read(root, voc):
    _truncate(root / "toy/jpg/a.jpg")
    records = load(voc)
    with pytest.raises(DatasetError, match="toy/jpg/a.jpg cannot be read: OSError.*truncated"):
        build_mapper(plain_cfg(), True)(records[0])
    assert build_mapper(plain_cfg(), True)(records[1])["image"].shape[0] == 3


def test_an_image_replaced_since_the_start_is_named(root, voc):
    records = load(voc)
    Image.new("RGB", (32, 32)).save(root / "toy/jpg/a.jpg")
    with pytest.raises(DatasetError, match="a.jpg cannot be read: Mismatched image shape"):
        build_mapper(plain_cfg(), True)(records[0])
    (root / "toy/jpg/b.jpg").unlink()
    with pytest.raises(DatasetError, match="b.jpg cannot be read: FileNotFoundError"):
        build_mapper(plain_cfg(), True)(records[1])


def test_a_mapper_that_fails_otherwise_fails_as_it_does(voc):
    record = load(voc)[0]
    record["annotations"][0]["bbox_mode"] = "nonsense"
    with pytest.raises(Exception) as caught:
        build_mapper(plain_cfg(), True)(record)
    assert not isinstance(caught.value, DatasetError)


def test_skipped_with_a_count_in_training_never_in_evaluation(root, voc, caplog):
    _truncate(root / "toy/jpg/a.jpg")
    record = load(voc)[0]
    cfg = plain_cfg("DATALOADER.BAD_IMAGES", "skip")
    mapper = build_mapper(cfg, True)
    with caplog.at_level(logging.WARNING):
        assert mapper(record) is None and mapper(record) is None
    assert "a.jpg cannot be read and is skipped" in caplog.text
    assert "; 2 skipped by this data worker so far" in caplog.text
    with pytest.raises(DatasetError):
        build_mapper(cfg, False)(record)


@pytest.mark.parametrize("workers", [0, 1])
def test_training_stops_or_goes_on_with_other_images(root, voc, workers):
    _truncate(root / "toy/jpg/a.jpg")
    write_xml(root / "toy/xml/b.xml", [("dog", (5, 5, 30, 30)), ("cat", (5, 5, 20, 20))])
    register_custom_datasets(make_cfg(train=["toy"], toy=voc))
    opts = ["DATASETS.TRAIN", ("toy",), "DATALOADER.NUM_WORKERS", workers]
    opts += ["SOLVER.IMS_PER_BATCH", 1]
    with pytest.raises(DatasetError, match="toy/jpg/a.jpg cannot be read"):
        loader = iter(DistillTrainer.build_train_loader(plain_cfg(*opts)))
        [next(loader) for _ in range(4)]
    loader = DistillTrainer.build_train_loader(plain_cfg(*opts, "DATALOADER.BAD_IMAGES", "skip"))
    batches = iter(loader)
    names = [x["file_name"] for _ in range(4) for x in next(batches)]
    assert names == [str(root / "toy/jpg/b.jpg")] * 4


def test_evaluation_names_the_image(root, voc):
    _truncate(root / "toy/jpg/b.jpg")
    register_custom_datasets(make_cfg(test=["toy"], toy=voc))
    cfg = plain_cfg("DATASETS.TEST", ("toy",), "DATALOADER.BAD_IMAGES", "skip")
    with pytest.raises(DatasetError, match="toy/jpg/b.jpg cannot be read"):
        list(DistillTrainer.build_test_loader(cfg, "toy"))
