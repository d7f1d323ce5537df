# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""What a store gives is what was put, of this very teacher; everything else counts as absent."""

import json
import logging

import pytest
import torch
from safetensors.torch import load_file

from d2kd.data.map_cache.stores import FolderStore, MemoryStore, nbytes

SIGNATURE = {"weights": "abc", "dtype": "bfloat16"}
ROOM = 2**20


def _maps(seed=0, dtype=torch.bfloat16):
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(8, size, size + 1, generator=generator).to(dtype)
        for name, size in (("p10", 5), ("p3", 3))
    }


def _equal(found, expected):
    return list(found) == list(expected) and all(
        torch.equal(found[k], expected[k]) and found[k].dtype == expected[k].dtype for k in found
    )


@pytest.fixture(params=["memory", "folder"])
def store(request, tmp_path):
    return (
        MemoryStore(ROOM) if request.param == "memory" else FolderStore(tmp_path, SIGNATURE, ROOM)
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_what_was_put_is_found_under_its_names_alone(store, dtype):
    assert store.get("features", "aa11") is None
    store.put("features", "aa11", _maps(1, dtype))
    store.put("features", "aa22", _maps(2, dtype))
    assert _equal(store.get("features", "aa11"), _maps(1, dtype))
    assert _equal(store.get("features", "aa22"), _maps(2, dtype))
    assert store.get("dense_logits", "aa11") is None


def test_nothing_is_put_beyond_the_limit(tmp_path, caplog):
    for limit in (nbytes(_maps()) * 3 // 2, 0):
        for store in (MemoryStore(limit), FolderStore(tmp_path / str(limit), SIGNATURE, limit)):
            caplog.clear()
            for seed in range(3):
                store.put("features", f"ab{seed}", _maps(seed))
            kept = [store.get("features", f"ab{seed}") is not None for seed in range(3)]
            assert kept == [limit > 0, False, False]
            assert caplog.text.count("takes nothing more") == 1
    # What an earlier run has put counts.
    again = FolderStore(tmp_path / str(nbytes(_maps()) * 3 // 2), SIGNATURE, ROOM)
    assert again.used > nbytes(_maps())


def test_an_entry_is_a_safetensors_file(tmp_path):
    FolderStore(tmp_path, SIGNATURE, ROOM).put("features", "aa11", _maps())
    (path,) = tmp_path.rglob("*.safetensors")
    assert _equal({name: load_file(path)[name] for name in _maps()}, _maps())


def test_a_second_store_of_the_same_teacher_reads_it_and_another_teacher_does_not(tmp_path):
    FolderStore(tmp_path, SIGNATURE, ROOM).put("features", "aa11", _maps())
    assert _equal(FolderStore(tmp_path, dict(SIGNATURE), ROOM).get("features", "aa11"), _maps())
    for key in SIGNATURE:
        other = FolderStore(tmp_path, {**SIGNATURE, key: "x"}, ROOM)
        assert other.get("features", "aa11") is None and other.rejected == 0


def _cut(path):
    path.write_bytes(path.read_bytes()[:-7])


def _flip(path):
    content = bytearray(path.read_bytes())
    content[-9] ^= 4
    path.write_bytes(content)


def _change_header(path, key="dtype", value="float16"):
    """A whole file whose header names another teacher."""
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    about = header["__metadata__"]
    about["teacher"] = json.dumps({**json.loads(about["teacher"]), key: value}, sort_keys=True)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])


def _change_image(path):
    path.write_bytes(path.with_name("aa22.safetensors").read_bytes())


@pytest.mark.parametrize(
    "spoil, words",
    [
        (_cut, "is damaged"),
        (_flip, "is damaged (checksum)"),
        (lambda path: path.write_bytes(b""), "is damaged"),
        (lambda path: path.write_bytes(b"\xff" * 100), "is damaged"),
        (lambda path: path.write_bytes(bytes(4096)), "is damaged"),
        (_change_header, "is of another teacher"),
        (lambda path: _change_header(path, "weights", "def"), "is of another teacher"),
        (_change_image, "is of another image"),
    ],
)
def test_what_is_no_entry_of_this_teacher_counts_as_absent(tmp_path, caplog, spoil, words):
    writer = FolderStore(tmp_path, SIGNATURE, ROOM)
    for digest in ("aa11", "aa22"):
        writer.put("features", digest, _maps(int(digest, 16)))
    spoil(next(tmp_path.rglob("aa11.safetensors")))
    store = FolderStore(tmp_path, SIGNATURE, ROOM)
    with caplog.at_level(logging.WARNING):
        for _ in range(12):
            assert store.get("features", "aa11") is None
    assert store.rejected == 12 and words in caplog.text
    assert [record.args[0] for record in caplog.records] == [1, 10]
    assert store.get("features", "aa22") is not None
    store.put("features", "aa11", _maps(5))
    assert _equal(store.get("features", "aa11"), _maps(5))


def test_a_folder_that_cannot_be_written_is_said_once(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    store = FolderStore(tmp_path / "file", SIGNATURE, ROOM)
    for _ in range(2):
        store.put("features", "aa11", _maps())
        assert store.get("features", "aa11") is None
    assert caplog.text.count("takes nothing more") == 1
