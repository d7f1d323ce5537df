# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Images that differ in a pixel, a side or a type have other digests; the mapper adds them."""

import torch

from d2kd.data.map_cache.image_digest import DIGEST_KEY, DigestingMapper, image_digest


def test_digest():
    image = torch.arange(3 * 4 * 6, dtype=torch.uint8).view(3, 4, 6)
    other = image.clone()
    other[2, 3, 5] += 1
    images = [image, other, image.flip(2), image.view(3, 6, 4), image.float(), image.flip(0)]
    assert len({image_digest(x) for x in images}) == len(images)
    # The same pixels, however they lie in memory.
    assert image_digest(image.flip(2).flip(2)) == image_digest(image)
    assert image_digest(image.permute(1, 2, 0).contiguous().permute(2, 0, 1)) == image_digest(image)


def test_mapper_adds_the_digest_of_what_it_gives():
    image = torch.zeros(3, 4, 4, dtype=torch.uint8)
    mapper = DigestingMapper(lambda record: record and {**record, "image": image})
    assert mapper({"a": 1}) == {"a": 1, "image": image, DIGEST_KEY: image_digest(image)}
    assert mapper(None) is None


def test_the_files_of_the_image_are_read_ahead(tmp_path, monkeypatch):
    read = []
    monkeypatch.setattr("d2kd.data.map_cache.image_digest.read_ahead", read.append)
    image = torch.zeros(3, 4, 4, dtype=torch.uint8)
    digest, folder = image_digest(image), tmp_path / "cache [1]"
    for part in ("features", "dense_logits"):
        path = folder / "0123" / part / digest[:2] / f"{digest}.safetensors"
        path.parent.mkdir(parents=True)
        path.write_text("")
    DigestingMapper(lambda _: {"image": image}, str(folder))({})
    assert len(read) == 2 and all(digest in path for path in read)


def test_reading_ahead_is_no_error_where_there_is_nothing(tmp_path):
    from d2kd.data.map_cache.entry_file import read_ahead

    read_ahead(str(tmp_path / "absent"))
    (tmp_path / "there").write_text("x")
    read_ahead(str(tmp_path / "there"))
