# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""The SLURM script of docs/training.md stops its training in order, then requeues the job."""

import os
import re
import signal
import subprocess
import time

from tests.common import ROOT

# In the place of srun: a training that takes a while to end after SIGTERM.
SRUN = """#!/bin/bash
trap 'sleep 0.3; echo "checkpoint" >> log; exit 143' TERM
echo "$*" >> log
while true; do sleep 0.05; done
"""
SCONTROL = """#!/bin/bash
echo "scontrol $*" >> log
"""


def test_the_script_of_the_page_requeues_its_job_after_the_checkpoint(tmp_path):
    page = (ROOT / "docs/training.md").read_text()
    (script,) = re.findall(r"```bash\n(#!/bin/bash\n#SBATCH.*?)```", page, re.DOTALL)
    for name, text in (("job", script), ("srun", SRUN), ("scontrol", SCONTROL)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "7"}
    job = subprocess.Popen(["bash", "job"], cwd=tmp_path, env=environment)
    log = tmp_path / "log"
    until = time.monotonic() + 20
    while not log.exists() and time.monotonic() < until:
        time.sleep(0.02)
    job.send_signal(signal.SIGUSR1)
    job.wait(20)
    started, saved, requeued = log.read_text().splitlines()
    assert started.startswith("python train_net.py --num-gpus 8 --resume --config-file configs/")
    assert (ROOT / started.split("--config-file ")[1]).is_file()
    assert (saved, requeued) == ("checkpoint", "scontrol requeue 7")
