# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""A config over one that Detectron2 installs: its Python tags are run, those of others are not."""

import pytest
from detectron2.model_zoo import get_config, get_config_file

from d2kd.config.load import load_config
from d2kd.modeling.build import read_teacher_config
from d2kd.utils.errors import ConfigError

NAME = "COCO-Detection/retinanet_R_50_FPN_1x.yaml"
TAG = "MODEL: {PIXEL_MEAN: !!python/object/apply:os.mkdir ['%s']}\n"


def _write(folder, name, *bases, rest="SEED: 3\n"):
    listed = ", ".join(f'"{base}"' for base in bases)
    (folder / name).write_text(f"_BASE_: [{listed}]\n{rest}")
    return str(folder / name)


@pytest.mark.parametrize("between", [0, 1])
def test_a_student_s_base_may_be_detectron2_s(tmp_path, between):
    path = _write(tmp_path, "base.yaml", get_config_file(NAME))
    if between:
        path = _write(tmp_path, "student.yaml", "base.yaml", rest="OUTPUT_DIR: './o'\n")
    cfg, stock = load_config(path), get_config(NAME)
    assert cfg.SEED == 3
    assert cfg.MODEL.ANCHOR_GENERATOR.SIZES == stock.MODEL.ANCHOR_GENERATOR.SIZES
    assert cfg.MODEL.RETINANET == stock.MODEL.RETINANET


def test_so_may_that_of_a_teacher_s_own_file(tmp_path):
    base = get_config_file(NAME)
    teacher = _write(tmp_path, "teacher.yaml", base)
    keys = ["DISTILL.TEACHER.CONFIG_FILE", teacher, "DISTILL.TEACHER.WEIGHTS", "t.pth"]
    cfg = load_config(_write(tmp_path, "student.yaml", base), keys)
    sizes = read_teacher_config(cfg).MODEL.ANCHOR_GENERATOR.SIZES
    assert sizes == get_config(NAME).MODEL.ANCHOR_GENERATOR.SIZES


@pytest.mark.parametrize("where", ["above", "beside", "below"])
def test_no_other_file_of_the_chain_may_run_code(tmp_path, where):
    zoo, spoilt = get_config_file(NAME), tmp_path / "spoilt"
    (tmp_path / "bad.yaml").write_text(TAG % spoilt)
    if where == "above":
        path = _write(tmp_path, "a.yaml", zoo, rest=TAG % spoilt)
    elif where == "beside":
        path = _write(tmp_path, "a.yaml", zoo, "bad.yaml")
    else:
        middle = _write(tmp_path, "middle.yaml", "bad.yaml", zoo)
        path = _write(tmp_path, "a.yaml", middle)
    with pytest.raises(ConfigError, match="is not a yaml file of plain values"):
        load_config(path)
    assert not spoilt.exists()


def test_a_copy_elsewhere_is_not_trusted(tmp_path):
    copy = tmp_path / "Base-RetinaNet.yaml"
    copy.write_bytes(open(get_config_file("Base-RetinaNet.yaml"), "rb").read())
    with pytest.raises(ConfigError, match="not a yaml file of plain values.*python/object"):
        load_config(_write(tmp_path, "a.yaml", "Base-RetinaNet.yaml"))


def test_the_name_in_the_zoo_is_answered_by_its_path(tmp_path):
    with pytest.raises(ConfigError, match="_BASE_ is not there") as caught:
        load_config(_write(tmp_path, "a.yaml", NAME))
    advice = str(caught.value).split("set it to ")[1]
    assert load_config(_write(tmp_path, "b.yaml", advice)).MODEL.META_ARCHITECTURE == "RetinaNet"
    with pytest.raises(ConfigError) as caught:
        load_config(_write(tmp_path, "a.yaml", "nowhere.yaml"))
    assert "Detectron2's own" not in str(caught.value)
