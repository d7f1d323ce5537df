# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""An installed d2kd, not a checkout: it has its configs and its teacher, and it distils."""

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from tests.common import ROOT

# What a user of an installed d2kd writes; train_net.py is not installed.
TRAINING = """
import sys
import d2kd
from d2kd.config.load import load_config
from d2kd.model_zoo import get_config_file

assert sys.prefix in d2kd.__file__, d2kd.__file__
name = "shapes/SSIM/faster_rcnn_R_50_eighth_from_R_50_three_eighths_800.yaml"
opts = ["MODEL.DEVICE", "cpu", "SOLVER.MAX_ITER", "2", "SOLVER.STEPS", "()", "DATASETS.TEST", "()"]
cfg = load_config(get_config_file(name), [*opts, "SOLVER.IMS_PER_BATCH", "2", *sys.argv[1:]])
trainer = d2kd.DistillTrainer(cfg)
trainer.resume_or_load(resume=False)
trainer.train()
assert "loss_distill_feature" in trainer.storage.latest()
"""


@pytest.fixture(scope="module")
def python(tmp_path_factory):
    """The interpreter of a new environment with d2kd's wheel, beside the packages it needs."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    build = [*pip, "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", folder, ROOT]
    # Of the environments alone: a path to the checkout would count as an installed d2kd.
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    subprocess.run(build, check=True, env=environment)
    (wheel,) = folder.glob("d2kd-*.whl")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "env"], check=True)
    site = Path(sysconfig.get_path("purelib", vars={"base": str(folder / "env")}))
    # Unlike the running environment's own, this line brings no editable d2kd with it.
    (site / "beside.pth").write_text(sysconfig.get_path("purelib") + "\n")
    interpreter = folder / "env" / "bin" / "python"
    install = [*pip, "--python", interpreter, "install", "--quiet", "--no-deps", wheel]
    subprocess.run(install, check=True, env=environment)
    return interpreter


def test_distils_from_an_empty_folder(python, tmp_path):
    environment = {
        "DETECTRON2_DATASETS": str(tmp_path / "data"),
        "OMP_NUM_THREADS": "1",
        "PATH": "/usr/bin:/bin",
    }
    (tmp_path / "empty").mkdir()
    run = [python, "-W", "ignore", "-c", TRAINING, "OUTPUT_DIR", str(tmp_path / "output")]
    done = subprocess.run(
        run, cwd=tmp_path / "empty", env=environment, text=True, capture_output=True
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "output" / "model_final.pth").is_file()
    assert not list((tmp_path / "empty").iterdir())
