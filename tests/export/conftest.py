# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Files that several tests look at."""

import pytest

from d2kd.export.shape import InputShape
from d2kd.export.writers import write
from tests.common.exportable import exportable

ANY = InputShape()


@pytest.fixture(scope="session")
def files(tmp_path_factory):
    """Function of (detector, ending, shape, half) that writes each file once."""
    folder, written = tmp_path_factory.mktemp("exported"), {}

    def get(name, ending=".onnx", shape=ANY, half=False):
        key = (name, ending, shape, half)
        if key not in written:
            written[key] = folder / f"{len(written)}{ending}"
            write(exportable(name), written[key], shape, half, {"classes": "[]"})
        return written[key]

    return get
