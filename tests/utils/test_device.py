# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Without a GPU the commands run on the CPU, and say so."""

import pytest
import torch

from d2kd.utils.device import device_or_cpu


@pytest.mark.parametrize(
    "device, gpu, used", [("cpu", False, "cpu"), ("cuda:1", True, "cuda:1"), ("cuda", False, "cpu")]
)
def test_device_or_cpu(monkeypatch, device, gpu, used):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    found, sentence = device_or_cpu(device)
    assert found == used
    changed = "MODEL.DEVICE is cuda and there is no GPU: this runs on the CPU"
    assert sentence == ("" if found == device else changed)
