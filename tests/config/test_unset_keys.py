# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""A key left blank is named, whichever it is."""

import pytest
import yaml
from detectron2.config import CfgNode, get_cfg

from d2kd.config.defaults import add_d2kd_config, get_value
from d2kd.config.load import all_keys, load_config
from d2kd.config.unset_keys import refuse_unset_keys
from d2kd.modeling.build import read_teacher_config
from d2kd.utils.errors import ConfigError
from tests.common.helpers import distill_cfg


def defaults():
    cfg = get_cfg()
    add_d2kd_config(cfg)
    return cfg


LEAVES = [key for key in all_keys(defaults()) if not isinstance(get_value(defaults(), key), dict)]
BLANK = [key for key in LEAVES if get_value(defaults(), key) is not None]
LISTS = [key for key in LEAVES if isinstance(get_value(defaults(), key), (list, tuple))]


def write(folder, key, value):
    """A yaml of this one key; the device is that of tests."""
    content = {"MODEL": {"DEVICE": "cpu"}}
    node, parts = content, key.split(".")
    for part in parts[:-1]:
        node = node.setdefault(part, {})
    node[parts[-1]] = value
    (folder / "c.yaml").write_text(yaml.safe_dump(content))
    return str(folder / "c.yaml")


@pytest.mark.parametrize("key", BLANK)
def test_every_blank_key_is_named(tmp_path, key):
    with pytest.raises(ConfigError) as error:
        load_config(write(tmp_path, key, None))
    assert f"  {key} is None: set it to " in str(error.value)


@pytest.mark.parametrize("key", LISTS)
def test_blank_entries_of_every_list_are_named(tmp_path, key):
    for value in ([None], [[1, None]]):
        with pytest.raises(ConfigError, match=f"  {key} is .*None"):
            load_config(write(tmp_path, key, value))


def test_the_message_says_what_to_set():
    cfg = defaults()
    cfg.DATASETS.TEST = cfg.MODEL.WEIGHTS = cfg.SOLVER.BASE_LR = cfg.TEST.AUG.FLIP = None
    with pytest.raises(ConfigError) as error:
        refuse_unset_keys(cfg, "my.yaml")
    assert sorted(str(error.value).splitlines()) == [
        "  DATASETS.TEST is None: set it to a list, () for none (the default is ())",
        "  MODEL.WEIGHTS is None: set it to a text, \"\" for none (the default is '')",
        "  SOLVER.BASE_LR is None: set it to a number (the default is 0.001)",
        "  TEST.AUG.FLIP is None: set it to True or False (the default is True)",
        "my.yaml leaves keys blank:",
    ]


def test_keys_that_are_none_by_default_may_be_so(tmp_path):
    refuse_unset_keys(defaults())
    load_config(write(tmp_path, "SOLVER.WEIGHT_DECAY_BIAS", None))


def test_keys_of_declared_sets_and_of_the_command_line(tmp_path):
    cfg = defaults()
    cfg.DATASETS.CUSTOM.mine = CfgNode({"FORMAT": "coco", "CLASSES": None})
    with pytest.raises(ConfigError, match="DATASETS.CUSTOM.mine.CLASSES is None"):
        refuse_unset_keys(cfg)
    with pytest.raises(ConfigError, match="command line leaves keys blank:\n  SEED is None"):
        load_config(write(tmp_path, "OUTPUT_DIR", "x"), ["SEED", "None"])


def test_the_teachers_config_is_looked_at_too(tmp_path):
    cfg = distill_cfg((write(tmp_path, "MODEL.RPN.IN_FEATURES", None), "teacher.pth"))
    with pytest.raises(ConfigError, match="CONFIG_FILE .*c.yaml.*:\n  MODEL.RPN.IN_FEATURES is"):
        read_teacher_config(cfg)
