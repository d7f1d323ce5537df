# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Every configuration key that d2kd adds to Detectron2's, each declared once and here."""

from typing import Any

from detectron2.config import CfgNode as CN

from .detectors import DETECTORS

__all__ = ["LOSS_NAMES", "OPTIMIZERS", "SCHEDULES", "add_d2kd_config", "get_value"]

LOSS_NAMES = ("feature", "cls", "reg")
BAD_IMAGES = ("stop", "skip")
PROPOSALS = ("student", "union")
PRECISIONS = ("student", "float32", "bfloat16", "float16")
LAYOUTS = ("auto", "channels_first", "channels_last")
OPTIMIZERS = ("SGD", "ADAMW")
SCHEDULES = ("constant", "linear", "cosine", "step")


def add_d2kd_config(cfg: CN) -> None:
    """Add d2kd's keys with their defaults to a Detectron2 config.

    ``MODEL`` and everything else in the config describe the student. A default marked "choice" is
    ours: no paper publishes it.
    """
    # Datasets that need no Python: name -> {FORMAT, ANNOTATIONS, IMAGES, SPLIT, CLASSES};
    # datasets/README.md describes them.
    cfg.DATASETS.CUSTOM = CN(new_allowed=True)
    # An image that cannot be read in training: "stop", naming it, or "skip" it with a warning that
    # counts (another image takes its place).
    cfg.DATALOADER.BAD_IMAGES = "stop"
    # "SGD" as Detectron2 builds it, or "ADAMW" with the same parameter groups.
    cfg.SOLVER.OPTIMIZER = "SGD"
    # Batches of IMS_PER_BATCH images whose gradients are averaged for one step of the optimizer, an
    # iteration. BASE_LR is not changed by it: set it as for IMS_PER_BATCH * ACCUMULATE_STEPS.
    cfg.SOLVER.ACCUMULATE_STEPS = 1
    # MODEL.FCOS, MODEL.GFL, and the nodes of detectors of your own.
    for row in DETECTORS.values():
        row.add_config(cfg)
    cfg.DISTILL = CN()
    # False trains the plain student, bit-equal to stock Detectron2.
    cfg.DISTILL.ENABLED = False
    # Which of the three losses are computed; any of LOSS_NAMES.
    cfg.DISTILL.LOSSES = ["feature", "cls", "reg"]
    # Whose proposals a two-stage student is trained on: "student", or "union" with the teacher's
    # (TAR lets them "interflow"; which ones is a choice).
    cfg.DISTILL.PROPOSALS = "student"
    # Several processes: True divides the distillation losses by the mean over processes of their
    # positives, mask sums and weights, which gives the joined batch's gradients; False by each
    # process's own, as FRS's released code and most detection losses do (docs/processes.md).
    cfg.DISTILL.REDUCE_NORMALIZERS = False
    _add_network_keys(cfg.DISTILL)
    _add_schedule_keys(cfg.DISTILL)
    _add_loss_keys(cfg.DISTILL)
    _add_mask_and_distance_keys(cfg.DISTILL)


def _add_network_keys(node: CN) -> None:
    node.TEACHER = CN()
    # A model-zoo name ("COCO-Detection/faster_rcnn_R_101_FPN_3x.yaml") or the path of a yaml.
    node.TEACHER.CONFIG_FILE = ""
    # A path, URL or detectron2:// address; "" is the model zoo's checkpoint of CONFIG_FILE.
    node.TEACHER.WEIGHTS = ""
    # What the teacher computes in: "student": what the student does, half under SOLVER.AMP;
    # "float32"; "bfloat16" or "float16", from which losses get float32 (docs/precision.md).
    node.TEACHER.PRECISION = "student"
    # How the teacher's maps lie in memory: "channels_first", "channels_last", or "auto", the latter
    # on a CPU, where it takes 0.8 of the time. Values change by rounding alone.
    node.TEACHER.LAYOUT = "auto"
    # Run the teacher's backbone through torch.compile: on a CPU half of the time, for a start that
    # takes a minute and again one for other image sizes; needs a C++ compiler there.
    node.TEACHER.COMPILE = False
    node.STUDENT = CN()
    # Module prefixes ("backbone.fpn", "proposal_generator", "roi_heads") whose teacher weights the
    # student starts from wherever names and shapes agree. Also works with ENABLED False, so that a
    # baseline can be given the same start.
    node.STUDENT.INHERIT = []


def _add_schedule_keys(node: CN) -> None:
    # One factor r(iteration) scales all distillation losses.
    node.SCHEDULE = CN()
    # "constant"; "linear": 1 -> 0, TAR's decay; "cosine": 1 -> 0; "step".
    node.SCHEDULE.NAME = "linear"
    # Iterations over which the factor rises linearly from 0; FRS: 500.
    node.SCHEDULE.WARMUP_ITERS = 0
    # "step" only: fractions of the training at which the factor is multiplied by GAMMA (choice).
    node.SCHEDULE.STEPS = (0.667, 0.889)
    node.SCHEDULE.GAMMA = 0.1


def _add_loss_keys(node: CN) -> None:
    node.FEATURE = CN()
    # TAR publishes none (choice; its printed 1/2 is part of it); FRS: by detector; SSIM: 2 or 4.
    node.FEATURE.WEIGHT = 1.0
    # FPN levels to distil; [] is every level of the student's backbone.
    node.FEATURE.LEVELS = []
    # Where: "uniform", "gaussian" (TAR), "richness" (FRS), or a mask of your own.
    node.FEATURE.MASK = "gaussian"
    # How far: "squared" (TAR, FRS), "absolute", "ssim", "pearson" (PKD), "channel_kl" (CWD).
    node.FEATURE.DISTANCE = "squared"
    # Channels are averaged ("mean") or, as FRS publishes it, summed ("sum").
    node.FEATURE.CHANNELS = "mean"
    # "auto": 1x1 where channels differ; "none"; "1x1"; "3x3" (FRS, on every level).
    node.FEATURE.ADAPTER = "auto"

    node.CLS = CN()
    node.CLS.WEIGHT = 1.0
    # "positives": soft labels of the positive regions (TAR); or a mask's name: all dense
    # locations, weighted by it (FRS: "richness").
    node.CLS.WHERE = "positives"
    # "cross_entropy" (soft targets) or "kl"; the binary form for sigmoid heads.
    node.CLS.DISTANCE = "cross_entropy"
    node.CLS.TEMPERATURE = 1.0

    node.REG = CN()
    node.REG.WEIGHT = 1.0
    # A positive region copies the teacher's box only if its IoU with the ground truth is above
    # that of the student's box ("student", choice), of the region ("proposal"), or always ("none").
    node.REG.GATE = "student"
    # "box_loss": the detector's own; "distribution_kl": LD, on GFL's box-edge distributions.
    node.REG.DISTANCE = "box_loss"
    # "distribution_kl" only; LD: 10.
    node.REG.TEMPERATURE = 10.0


def _add_mask_and_distance_keys(node: CN) -> None:
    # Parameters of a mask or distance stand under its upper-case name. New names are allowed: a
    # registered function is given whatever stands here.
    node.MASKS = CN(new_allowed=True)
    node.MASKS.GAUSSIAN = CN()
    # exp(-x^2 / (SIGMA2 (w/2)^2)): 2 gives 0.61 at the middle of a box's edge.
    node.MASKS.GAUSSIAN.SIGMA2 = 2.0
    # A box marks "all" levels, or only its "own" by its size (choice).
    node.MASKS.GAUSSIAN.LEVELS = "all"
    node.DISTANCES = CN(new_allowed=True)
    node.DISTANCES.CHANNEL_KL = CN()
    node.DISTANCES.CHANNEL_KL.TEMPERATURE = 1.0
    node.DISTANCES.SSIM = CN()
    # Side of the Gaussian window in feature cells, and its standard deviation.
    node.DISTANCES.SSIM.WINDOW = 11
    node.DISTANCES.SSIM.SIGMA = 1.5
    # Exponents of luminance, contrast and structure.
    node.DISTANCES.SSIM.ALPHA = 1.0
    node.DISTANCES.SSIM.BETA = 1.0
    node.DISTANCES.SSIM.GAMMA = 1.0
    # C1 = (K1 RANGE)^2, C2 = (K2 RANGE)^2, C3 = C2 / 2.
    node.DISTANCES.SSIM.K1 = 0.01
    node.DISTANCES.SSIM.K2 = 0.03
    node.DISTANCES.SSIM.RANGE = 1.0
    # Both maps are min-max scaled to [0, 1] per "image_channel", "image", "level", or not
    # ("none"); which axis is a choice.
    node.DISTANCES.SSIM.SCALING = "image_channel"


def get_value(cfg: CN, key: str) -> Any:
    """The value of a dotted key; None where this version of Detectron2 has no such key."""
    for part in key.split("."):
        cfg = cfg.get(part) if cfg is not None else None
    return cfg
