import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# As when they are run: scripts see the modules beside them.
sys.path.insert(0, str(ROOT / "tools"))


@pytest.fixture(scope="session")
def measured(tmp_path_factory):
    """The JSON of a real, tiny run with memory."""
    import benchmark

    path = tmp_path_factory.mktemp("benchmark") / "shapes" / "a.json"
    config = str(ROOT / "configs/shapes/TAR/faster_rcnn_thin_from_wide_800.yaml")
    options = ["--size", "64", "64", "--batch", "1", "--steps", "2", "--warmup", "1"]
    argv = ["benchmark.py", "--config-file", config, "--json", str(path), "--random-weights"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        patch.setattr(sys, "argv", [*argv, *options, "--threads", "1", "MODEL.DEVICE", "cpu"])
        benchmark.main()
    return path
