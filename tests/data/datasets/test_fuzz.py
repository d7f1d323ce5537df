# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Whatever stands in an annotation file: it ends in records or in one D2kdError, and soon."""

import copy
import json
import logging
import random
import re
import resource
import time

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from d2kd.data import register_custom_datasets
from d2kd.utils.errors import D2kdError
from tests.common.toy_sets import coco_content, make_cfg, write_coco

SHORT, LONG = 400, 20_000
# Bounds of one input and of all together: an image of these sets has 64 x 48 pixels.
SECONDS, MEGABYTES = 5.0, 300

ODD = [
    None, True, False, 0, 1, -1, 0.5, -0.0, 2**31, 2**63, -(2**64), 10**400, 1e308, -1e308,
    5e-324,
    float("nan"), float("inf"), float("-inf"), "",
    " ", "7", "a", "a.jpg", "\ud800", "\0", "é" * 300,
    "../a.jpg", "/", "sub\\a.jpg", "0" * 5000, "P" * 500, [], {}, [[]], [{}], [None], [[1, 2, 3]],
    [1, 2, 3, 4], [1e308] * 4, [0, 0, 1e-300, 1e-300], [[1, 2, 3, 4, 5, 6]], {"counts": "P"},
    {"counts": [2**70], "size": [48, 64]}, {"counts": "0" * 99, "size": [48, 64]},
    {"counts": [3072], "size": [48, 64]}, {"counts": [0, 0], "size": [2**40, 2**40]},
]  # fmt: skip
TEXTS = [
    "", " ", "0", "-1", "nan", "inf", "1e999", "1_0", "٣", "9" * 5000, "1", "64", "0.5", "dog",
    "<x/>", "&amp;", "&nope;", "&#0;", "&#x41;", "<![CDATA[1]]>", "<!-- -->", "<?x y?>", "\ud7ff",
    "../a.jpg", "a\\b.jpg", "<object>" * 300, "<object><bndbox/></object>",
]  # fmt: skip
HEADS = [
    '<?xml version="1.0" encoding="utf-16"?>', '<?xml version="1.0" encoding="nonsense"?>',
    '<?xml version="1.0" encoding="utf-7"?>', '<?xml version="1.1"?>', "<!DOCTYPE a>", "\ufeff",
    '<!DOCTYPE a [<!ENTITY b "c">]>', '<!DOCTYPE a SYSTEM "file:///etc/hostname">',
]  # fmt: skip


def rich_content():
    """COCO content in which every key that is read occurs."""
    content = coco_content()
    first, second = content["annotations"]
    first.update(segmentation=[[10, 5, 30, 5, 30, 35]], keypoints=[1, 2, 2], iscrowd=0, area=3)
    second.update(segmentation={"counts": [480, 48, 2544], "size": [48, 64]}, keypoints=[1, 2, 1])
    content["categories"][0]["keypoints"] = ["nose"]
    return content


def _places(node):
    """Every (container, key) of a nested value."""
    keys = node if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ()
    for key in keys:
        yield node, key
        yield from _places(node[key])


def mutate_json(content, rng):
    """Content with a few values replaced, removed, copied or nested, as bytes."""
    content = copy.deepcopy(content)
    for _ in range(rng.choice([1, 1, 2, 4])):
        places = list(_places(content))
        if not places:
            break
        node, key = rng.choice(places)
        action = rng.randrange(5)
        if action < 3:
            node[key] = copy.deepcopy(rng.choice(ODD))
        elif action == 3:
            del node[key]
        else:
            other, place = rng.choice(places)
            node[key] = copy.deepcopy(other[place]) if place in _keys(other) else [node[key]]
    try:
        return json.dumps(content).encode()
    except ValueError:  # 10**400 has more digits than some Pythons write
        return b"{}"


def _keys(node):
    return node if isinstance(node, dict) else range(len(node))


def mutate_xml(text, rng):
    """A VOC file with the text of some elements replaced, elements removed, or another head."""
    for _ in range(rng.choice([1, 1, 2, 4])):
        action = rng.choice(["head", "tag", "remove", "copy", *["text"] * 4])
        pattern = {"tag": r"</?\w+>", "text": r">([^<>]*)</"}.get(action, r"<(\w+)>[^<]*</\1>")
        found = list(re.finditer(pattern, text))
        if action == "head" or not found:
            text = rng.choice(HEADS) + text
            continue
        match = rng.choice(found)
        new = {"copy": match[0] * 2, "text": f">{rng.choice(TEXTS)}</"}.get(action, "")
        text = text[: match.start()] + new + text[match.end() :]
    return text.encode("utf-8", "surrogatepass")


def mutate_bytes(data, rng):
    """Bytes with a few changed, removed, inserted or cut off; sometimes none."""
    data = bytearray(data)
    for _ in range(rng.choice([0, 0, 0, 0, 0, 1, 2])):
        if not data:
            break
        place = rng.randrange(len(data))
        action = rng.randrange(4)
        if action == 0:
            data[place] = rng.randrange(256)
        elif action == 1:
            del data[place : place + rng.randint(1, 8)]
        elif action == 2:
            data[place:place] = rng.choice([b"[" * 2000, b"\xff\xfe", b"\0", b"{", b'"', b"9" * 9])
        else:
            del data[place:]
    return bytes(data)


def read(declaration, rng):
    """Read as training does; the records, or None if they were refused by name."""
    cfg = make_cfg(train=["fuzz"], fuzz=declaration)
    cfg.MODEL.MASK_ON, cfg.MODEL.KEYPOINT_ON = rng.random() < 0.1, rng.random() < 0.1
    cfg.INPUT.MASK_FORMAT = "bitmask"
    cfg.MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS = 1
    cfg.INPUT.RANDOM_FLIP = "none"
    try:
        register_custom_datasets(cfg)
        return DatasetCatalog.get("fuzz")
    except D2kdError as error:
        assert str(error).strip()
        return None
    finally:
        for catalog in (DatasetCatalog, MetadataCatalog):
            if "fuzz" in catalog.list():
                catalog.remove("fuzz")


def fuzz(root, voc, count, seed):
    """Read so many inputs of each kind; how many of all gave records."""
    rng, usable = random.Random(seed), 0
    coco, content = write_coco(root, rich_content()), rich_content()
    xml = (root / "toy/xml/a.xml").read_text()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number in range(count):
        for path, data, declaration in (
            (root / "toy.json", mutate_json(content, rng), coco),
            (root / "toy/xml/a.xml", mutate_xml(xml, rng), voc),
        ):
            data = mutate_bytes(data, rng)
            path.write_bytes(data)
            start = time.process_time()
            try:
                records = read(declaration, rng)
            except Exception as error:
                raise AssertionError(f"input {number} of seed {seed}: {data!r}") from error
            assert time.process_time() - start < SECONDS, (number, seed, data)
            usable += records is not None
            for item in (x for record in records or () for x in record["annotations"]):
                x0, y0, x1, y1 = item["bbox"]
                assert 0 <= x0 < x1 <= 64 and 0 <= y0 < y1 <= 48, (number, seed, data)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert grown < MEGABYTES
    return usable


@pytest.fixture(autouse=True)
def quiet():
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.parametrize("seed", range(2))
def test_any_input_ends_in_records_or_in_one_error(root, voc, seed):
    usable = fuzz(root, voc, SHORT, seed)
    # Both ends occur: else the mutations are too gentle or too rough to say anything.
    assert 0.05 * 2 * SHORT < usable < 0.8 * 2 * SHORT, usable


@pytest.mark.slow
def test_many_inputs_end_in_records_or_in_one_error(root, voc, capsys):
    seed = 20
    usable = fuzz(root, voc, LONG, seed)
    with capsys.disabled():
        print(f"\n{2 * LONG} inputs of seed {seed}: {usable} gave records, the others one error")
