# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""A LazyConfig file of a short training, plain or distilled, with random augmentation."""

from tests.common.lazy_files import toy_text

REST = """
import detectron2.data.transforms as T
from detectron2.data import DatasetMapper, build_detection_train_loader
from detectron2.data import get_detection_dataset_dicts
from detectron2.solver import WarmupParamScheduler
from detectron2.solver.build import get_default_optimizer_params
from fvcore.common.param_scheduler import LinearParamScheduler, MultiStepParamScheduler

from d2kd.losses.classification import ClassificationLoss
from d2kd.losses.regression import RegressionLoss
from d2kd.modeling import DistillLoss, feature_loss

train = dict(
    output_dir={folder!r}, init_checkpoint="", max_iter=4, amp=dict(enabled=False), device="cpu",
    checkpointer=dict(period=2, max_to_keep=5), eval_period=0, log_period=2, seed=3,
    ddp=dict(broadcast_buffers=False),
)
dataloader = dict(
    train=L(build_detection_train_loader)(
        dataset=L(get_detection_dataset_dicts)(names={names!r}),
        mapper=L(DatasetMapper)(
            is_train=True,
            augmentations=[
                L(T.ResizeShortestEdge)(short_edge_length=[48, 56, 64], sample_style="choice"),
                L(T.RandomFlip)(horizontal=True),
            ],
            image_format="BGR",
        ),
        total_batch_size=2,
        num_workers={workers},
    )
)
optimizer = L(torch.optim.SGD)(
    params=L(get_default_optimizer_params)(), lr=0.001, momentum=0.9, weight_decay=1e-4
)
lr_multiplier = L(WarmupParamScheduler)(
    scheduler=L(MultiStepParamScheduler)(values=[1.0, 0.1], milestones=[3], num_updates=4),
    warmup_length=0.5, warmup_factor=0.1
)
"""
DISTILL = """
distill = dict(
    teacher=dict(config_file={teacher!r}),
    losses=dict(
        feature=L(feature_loss)(mask="richness", channels="sum", weight=0.01),
        cls=L(DistillLoss)(
            loss=L(ClassificationLoss)(
                weight=1.0, where="positives", distance="cross_entropy", temperature=1.0
            ),
            weight=0.5,
        ),
        reg=[
            L(RegressionLoss)(weight=1.0, gate="none", distance="box_loss", temperature=1.0),
            2.0,
            L(LinearParamScheduler)(start_value=1.0, end_value=0.0),
        ],
    ),
)
"""


def write_run(path, names, teacher=None, workers=0, **student):
    """Write the file.

    Args:
        path: of the file; its output folder is "out" beside it.
        names: of the training set.
        teacher: its config file; None for a baseline.
        workers: data workers.
        student: of ``toy_text``.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    values = {"folder": str(path.parent / "out"), "names": names, "workers": workers}
    text = toy_text(**{"width": 4, **student}) + REST.format(**values)
    path.write_text(text + (DISTILL.format(teacher=str(teacher)) if teacher else ""))
    return path
