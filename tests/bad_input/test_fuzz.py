# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Any content of a config or a checkpoint ends in a result or in one D2kdError, and soon."""

import io
import logging
import os
import pickle
import random
import resource
import time

import numpy as np
import pytest
import torch

from d2kd.checkpoint.weights import load_weights_strict, resolve_weights
from d2kd.config.load import all_keys, load_config
from d2kd.utils.errors import D2kdError
from tests.common.helpers import plain_cfg

SHORT, LONG_SECONDS = 150, 60.0
SECONDS, MEGABYTES = 5.0, 500
PIECES = [
    "&a ", "*a", "[*a, *a]", "!!python/object/apply:os.mkdir [spoilt]", "{", "}", "[" * 300, ": ",
    "\n", "\t", "- ", "null", "~", "yes", "1e999", ".nan", "-.inf", "2020-99-99", "0x", "9" * 5000,
    "1:60:60", "!!binary x", "!!int a", "!!set {a}", "? ", "<<: *a", "\u0000", "\ufeff", "'", '"',
    "_BASE_: c.yaml\n", "_BASE_: [c.yaml]\n", "_BASE_: 3\n", "VERSION: 1\n", "1: 2\n", "MODEL: 3\n",
]  # fmt: skip
VALUES = [
    "", "None", "[]", "()", "{}", "{1: 2}", "[[1]]", "-1", "0", "1", "2.5", "1e400", "nan",
    "True", "a",
    "'a'", "9**9**9", "(" * 300, "9" * 5000, "\0", "é", "[{}]", "[None]", "(1, 'a')",
    "__import__('os')",
]  # fmt: skip


def _mutate_text(rng, text):
    for _ in range(rng.randint(1, 4)):
        at, to = sorted(rng.randint(0, len(text)) for _ in range(2))
        to = min(to, at + rng.randint(0, 30))
        text = text[:at] + rng.choice([*PIECES, text[at:to] * 2, ""]) + text[to:]
    return text


def _mutate_bytes(rng, content):
    content = bytearray(content)
    for _ in range(rng.randint(1, 6)):
        kind, at = rng.random(), rng.randrange(max(len(content), 1))
        if kind < 0.5:
            content[at : at + 1] = bytes([rng.randrange(256)])
        elif kind < 0.7:
            content[at : at + 4] = rng.choice([b"\xff" * 4, b"\0" * 4, b"\xff\xff\xff\x7f"])
        elif kind < 0.8:
            del content[at : at + rng.randint(1, 40)]
        elif kind < 0.9:
            content[at:at] = content[at : at + rng.randint(1, 40)]
        else:
            del content[at:]
    return bytes(content)


def _config(rng, folder, text, keys):
    path = folder / "c.yaml"
    opts = []
    if rng.random() < 0.5:
        opts = [x for _ in range(rng.randint(1, 3)) for x in (rng.choice(keys), rng.choice(VALUES))]
        path.write_text(text)
    else:
        path.write_text(_mutate_text(rng, text), errors="replace")
    load_config(str(path), opts)


def _checkpoint(rng, folder, files, model):
    name, content = rng.choice(files)
    path = folder / f"a{name}"
    path.write_bytes(_mutate_bytes(rng, content))
    load_weights_strict(model, str(path), resolve_weights(str(path), "KEY"), "student")


def _files(model):
    """Small checkpoints in every format: zip, torch before 1.6, Caffe2's pickles."""
    state = {name: value.clone() for name, value in model.state_dict().items()}
    for old in (False, True):
        buffer = io.BytesIO()
        torch.save({"model": state}, buffer, _use_new_zipfile_serialization=not old)
        yield ".pth", buffer.getvalue()
    arrays = {name: value.numpy() for name, value in state.items()}
    for protocol in (0, 2, 4):
        content = {"model": arrays, "__author__": "me", "step": np.float32(3)}
        yield ".pkl", pickle.dumps(content, protocol)


def _run(folder, seed, count=10**9, seconds=1e9):
    """Number of inputs, and of those that were no error."""
    logging.disable(logging.CRITICAL)
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 2, 1), torch.nn.BatchNorm2d(2))
    files, cfg, before = list(_files(model)), plain_cfg(), set(os.listdir("."))
    keys, text = list(all_keys(cfg)), plain_cfg().dump()
    until, done, fine, memory = time.perf_counter() + seconds, 0, 0, _peak()
    try:
        while done < count and time.perf_counter() < until:
            rng, done = random.Random(seed + done), done + 1
            began = time.perf_counter()
            try:
                if done % 2:
                    _config(rng, folder, text if done % 4 == 1 else "SEED: 3\n", keys)
                else:
                    _checkpoint(rng, folder, files, model)
                fine += 1
            except D2kdError:
                pass
            except Exception as error:
                raise AssertionError(f"seed {seed + done - 1}: {error!r:.300}") from error
            assert time.perf_counter() - began < SECONDS, f"seed {seed + done - 1} takes long"
            assert _peak() - memory < MEGABYTES, f"seed {seed + done - 1} takes much memory"
    finally:
        logging.disable(logging.NOTSET)
    assert set(os.listdir(".")) == before, "code of an input has run"
    return done, fine


def _peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def test_a_few_inputs_end_in_a_result_or_one_error(tmp_path):
    done, fine = _run(tmp_path, 1, count=SHORT)
    assert done == SHORT and 0 < fine < SHORT


@pytest.mark.slow
def test_many_inputs_end_in_a_result_or_one_error(tmp_path):
    done, fine = _run(tmp_path, 10**6, seconds=LONG_SECONDS)
    print(f"{done} mutated configs and checkpoints: {fine} read, {done - fine} refused")


def _laughs():
    lines = ["a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    return "\n".join(
        [*lines, *(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 12))]
    )


@pytest.mark.parametrize(
    "text, words",
    [
        (_laughs(), "more than"),
        ("_BASE_: c.yaml\nSEED: 1\n", "its own _BASE_"),
        ("SEED: &a [*a]\n", "holds itself"),
        ("SEED: " + "[" * 20000, "plain values"),
        ("SEED: 2020-99-99\n", "plain values"),
        ("3: 4\n", "a key is no word"),
    ],
)
def test_yaml_that_does_not_end(tmp_path, text, words):
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(D2kdError, match=words):
        load_config(str(tmp_path / "c.yaml"))


@pytest.mark.parametrize(
    "content",
    [
        b"\x80\x02K\x01r\xff\xff\xff\x7f.",  # an index into a memo of 2**31 entries
        b"\x80\x05\x96\x00\x00\x00\x00\x10\x00\x00\x00.",  # a buffer of 64 GB
        b"\x80\x02cnumpy\nndarray\nJ\xff\xff\xff\x7f\x85R.",
        b"\x80\x02cnumpy\ndtype\nX\x0c\x00\x00\x00V10000000000\x85R.",
        b"cos\nmkdir\n(S'spoilt'\ntR.",
        b"\x80\x02}K\x01K\x02\x86" + b"2\x86" * 60 + b"K\x01s.",  # a key that takes ages to hash
    ],
)
def test_pickles_that_ask_for_much(tmp_path, content):
    (tmp_path / "a.pkl").write_bytes(content)
    memory, began = _peak(), time.perf_counter()
    try:
        path = resolve_weights(str(tmp_path / "a.pkl"), "KEY")
        load_weights_strict(torch.nn.Conv2d(3, 2, 1), path, path, "student")
    except D2kdError:
        pass
    assert time.perf_counter() - began < SECONDS and _peak() - memory < MEGABYTES
