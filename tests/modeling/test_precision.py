# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Half precision: the teacher's by its key, the whole step's by autocast, float32 in losses."""

import pytest
import torch
from detectron2.utils.events import EventStorage

from d2kd.config.validation import check_config
from d2kd.utils.errors import ConfigError
from tests.common.detectors import DETECTORS, FRS, detector_cfg, write_teachers
from tests.common.helpers import build_distiller, make_batch, run

LD = {"DISTILL.REG.DISTANCE": "distribution_kl"}
SSIM = {"DISTILL.FEATURE.DISTANCE": "ssim", "DISTILL.DISTANCES.SSIM.WINDOW": 5}
CASES = [(name, keys) for name in DETECTORS for keys in ({}, {**FRS, **SSIM})] + [("GFL", LD)]
UNION = {"DISTILL.PROPOSALS": "union"}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return write_teachers(tmp_path_factory.mktemp("teachers"))


def _bfloat16():
    return torch.autocast("cpu", torch.bfloat16)


def _distiller(files, case, precision="student"):
    detector, keys = case
    # The gate compares two boxes that rounding may order otherwise.
    keys = {**keys, "DISTILL.REG.GATE": "none", "DISTILL.TEACHER.PRECISION": precision}
    return build_distiller(detector_cfg(files, detector, keys))


def _observe(distiller):
    torch.manual_seed(0)
    with EventStorage():
        return distiller.forward_pair(
            distiller.student, distiller.teacher, make_batch(), distiller.required
        )


def _answers(outputs):
    """Name -> tensor, of everything a detector answered."""
    named = {
        f"{kind}.{k}": v
        for kind in ("features", "dense_logits")
        for k, v in getattr(outputs, kind).items()
    }
    named.update({k: getattr(outputs, k) for k in ("logits", "deltas", "box_bins")})
    return {k: v for k, v in named.items() if v is not None}


def _relative(found, expected):
    return ((found - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("case", [*CASES, ("GeneralizedRCNN", UNION)], ids=str)
def test_a_teacher_in_half_answers_in_float32_and_nearly_the_same(files, case):
    answers = {}
    for precision in ("float32", "bfloat16"):
        distiller = _distiller(files, case, precision)
        answers[precision] = _answers(_observe(distiller)[1].teacher)
        assert all(p.dtype == torch.float32 for p in distiller.teacher.parameters())
    if case[1] == UNION:
        # Rounded proposals are others; rows are not to be compared.
        answers = {k: {n: x for n, x in v.items() if "." in n} for k, v in answers.items()}
    assert list(answers["float32"]) == list(answers["bfloat16"])
    for name, expected in answers["float32"].items():
        found = answers["bfloat16"][name]
        assert found.dtype == torch.float32, name
        assert 1e-4 < _relative(found, expected) < 0.05, name


@pytest.mark.parametrize("case", CASES, ids=str)
def test_float32_changes_nothing(files, case):
    found = []
    for precision in ("student", "float32"):
        distiller = _distiller(files, case, precision)
        losses = run(distiller, make_batch())
        sum(losses.values()).backward()
        found.append(
            [*losses.values(), *(p.grad for p in distiller.parameters() if p.requires_grad)]
        )
    assert all(torch.equal(a, b) for a, b in zip(*found))


@pytest.mark.parametrize(
    "case", [*((name, FRS) for name in DETECTORS), ("GeneralizedRCNN", {**FRS, **UNION})], ids=str
)
def test_under_autocast_the_key_still_decides(files, case):
    alone = _answers(_observe(_distiller(files, case))[1].teacher)
    with _bfloat16():
        full = _answers(_observe(_distiller(files, case, "float32"))[1].teacher)
        like_student = _answers(_observe(_distiller(files, case))[1].teacher)
    for name in alone:
        if "." in name:
            assert torch.equal(full[name], alone[name]), name
            assert like_student[name].dtype == torch.bfloat16, name
        assert full[name].dtype == torch.float32


def test_regions_are_pooled_as_they_are(files, monkeypatch):
    """In half precision the pooler would round the regions' corners to 2 px of 512."""
    distiller = _distiller(files, ("GeneralizedRCNN", {}), "bfloat16")
    seen = []
    pooler = distiller.teacher.model.roi_heads.box_pooler
    pooler.register_forward_hook(lambda _, inputs, output: seen.append((inputs[0], output)))
    _observe(distiller)
    ((features, pooled),) = seen
    assert {x.dtype for x in [*features, pooled]} == {torch.float32}


@pytest.mark.parametrize("teacher", ["student", "bfloat16"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_distilled_step_under_autocast(files, case, teacher):
    """Finite, float32 losses, and gradients in the direction of float32's."""
    gradients = []
    for context in (torch.autocast("cpu", enabled=False), _bfloat16()):
        distiller = _distiller(files, case, teacher)
        with context:
            losses = run(distiller, make_batch())
        distilled = {k: v for k, v in losses.items() if "distill" in k}
        assert len(distilled) == 3
        assert all(v.isfinite() for v in losses.values())
        assert all(v.dtype == torch.float32 for v in distilled.values())
        (sum(distilled.values()) + 0 * sum(losses.values())).backward()
        trained = [p.grad for p in distiller.parameters() if p.requires_grad]
        assert all(g is not None and g.isfinite().all() for g in trained)
        gradients.append(torch.cat([g.flatten() for g in trained]))
    assert torch.cosine_similarity(*gradients, dim=0) > 0.9


def test_float16_on_a_cpu_is_advised_against(files, caplog):
    _distiller(files, ("GeneralizedRCNN", {}), "float16")
    assert "set DISTILL.TEACHER.PRECISION to 'bfloat16'" in caplog.text


def test_unknown_precisions_are_named(files):
    cfg = detector_cfg(files, "FCOS", {"DISTILL.TEACHER.PRECISION": "half"})
    with pytest.raises(ConfigError, match="DISTILL.TEACHER.PRECISION is 'half': set it to one of"):
        check_config(cfg)
