# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Reading configs; errors name the file, the key, and the key that was likely meant."""

import os
from collections.abc import Iterator, Sequence
from typing import Any

import yaml
from detectron2.config import CfgNode
from detectron2.model_zoo import get_config_file
from detectron2.utils.file_io import PathManager

from ..utils.errors import ConfigError
from ..utils.text import did_you_mean, first_line
from .unset_keys import refuse_unset_keys
from .user_modules import default_config, import_modules
from .validation import check_config
from .yaml_size import check_yaml_size

__all__ = ["all_keys", "load_config", "merge_file", "merge_options"]


def load_config(path: str, options: Sequence[str] = (), modules: Sequence[str] = ()) -> CfgNode:
    """The config of a training: a yaml over the defaults, options over it, all in range.

    Args:
        path: of the yaml.
        options: ``KEY VALUE ...`` of the command line.
        modules: names after ``--import``; they are imported first.

    Raises:
        ConfigError: as ``import_modules``, ``merge_file``, ``merge_options`` and ``check_config``.
    """
    import_modules(modules)
    cfg = default_config()
    merge_file(cfg, path)
    merge_options(cfg, options)
    refuse_unset_keys(cfg, f"{path} or the command line" if options else path)
    check_config(cfg)
    return cfg


def all_keys(node: CfgNode, prefix: str = "") -> Iterator[str]:
    """Every dotted key of a config, nodes included."""
    for key, value in node.items():
        yield prefix + key
        if isinstance(value, CfgNode):
            yield from all_keys(value, f"{prefix}{key}.")


def merge_file(
    cfg: CfgNode, path: str, named_by: str = "--config-file", trusted: bool = False
) -> None:
    """Merge a yaml and its bases into ``cfg``.

    Unlike Detectron2's own function it creates no python objects, so a config cannot run code. Only
    a file that Detectron2 installs may, as a base too: its RetinaNet configs do for their anchors.

    Args:
        cfg: holds every known key; changed in place.
        path: of the yaml.
        named_by: the option or key that names the path, for messages.
        trusted: it may create python objects wherever it lies.

    Raises:
        ConfigError: the file or one of its bases is not there or malformed, it has unknown keys
            (all are listed, with what was likely meant), or a value has the wrong type.
    """
    if not PathManager.isfile(path):
        raise ConfigError(
            f"{named_by} {path} is not there (seen from {os.getcwd()}): set it to a yaml file"
        )
    if path.endswith(".py"):
        raise ConfigError(
            f"{named_by} {path} is Python code, a LazyConfig: train it by "
            "tools/lazyconfig_train_net.py, which also checks it before the first step"
        )
    try:
        # From here on for yaml's loader, which has one rule for a file and its bases.
        trusted = check_yaml_size(path, trusted)
        loaded = CfgNode.load_yaml_with_base(path, allow_unsafe=trusted)
    except ConfigError:
        raise
    except FileNotFoundError as error:
        raise ConfigError(
            f"{path}: a file of its _BASE_ is not there: {error}{_in_zoo(str(error.filename))}"
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not a yaml file of plain values: {error}") from error
    except AssertionError as error:
        raise ConfigError(f"{path}: {error}") from error
    except TypeError:  # fvcore's, of a file without any key
        loaded = None
    except Exception as error:  # yaml's of dates and numbers that are none, and of deep nesting
        raise ConfigError(
            f"{path} is not a yaml file of plain values: {first_line(error)}"
        ) from error
    if not isinstance(loaded, dict):
        raise ConfigError(f"{path} holds no keys: write them as 'KEY: value', one a line")
    if not all(isinstance(key, str) for key in _every_key(loaded)):
        raise ConfigError(f"{path}: a key is no word: write 'KEY: value', with KEY in letters")
    _check_groups(loaded, cfg, path)
    # Detectron2 renames the keys of older versions itself.
    if loaded.get("VERSION", cfg.VERSION) == cfg.VERSION:
        _refuse_unknown(cfg, list(_unknown_keys(loaded, cfg)), path)
    try:
        cfg.merge_from_file(path, allow_unsafe=trusted)
    except Exception as error:  # of yacs, and of Python's parser of values
        raise ConfigError(f"{path}: {_readable(error)}") from error


def merge_options(cfg: CfgNode, options: Sequence[str]) -> None:
    """Merge ``KEY VALUE ...`` of the command line into ``cfg``; raises as ``merge_file``."""
    misplaced = [option for option in options if str(option).startswith("--")]
    if misplaced:
        raise ConfigError(
            f"{' '.join(misplaced)} comes after KEY VALUE, where everything is read as more keys: "
            "put it before the first KEY"
        )
    if len(options) % 2:
        raise ConfigError(
            f"options are pairs of KEY VALUE, but there are {len(options)} words: {options}"
        )
    known = set(all_keys(cfg))
    unknown = [key for key in options[0::2] if key not in known]
    _refuse_unknown(cfg, unknown, "the command line")
    for key, value in zip(options[0::2], options[1::2]):
        try:
            cfg.merge_from_list([key, value])
        except Exception as error:  # of yacs, and of Python's parser of values
            raise ConfigError(f"the command line: {_readable(error)}") from error


def _in_zoo(path: str) -> str:
    """Where the file lies that is meant, if the path ends in a name of Detectron2's model zoo."""
    name = "/".join(path.split(os.sep)[-2:])
    try:
        return f". For Detectron2's own, set it to {get_config_file(name)}"
    except RuntimeError:
        return ""


def _check_groups(loaded: dict, node: CfgNode, path: str, prefix: str = "") -> None:
    """Where the config has a group of keys, the file has one too."""
    for key, group in node.items():
        if key in loaded and isinstance(group, CfgNode):
            if not isinstance(loaded[key], dict):
                raise ConfigError(
                    f"{path}: {prefix}{key} is {loaded[key]!r}, but it is a group of keys, e.g. "
                    f"{prefix}{key}.{next(iter(group), 'NAME')}"
                )
            _check_groups(loaded[key], group, path, f"{prefix}{key}.")


def _every_key(node: dict) -> Iterator[Any]:
    for key, value in node.items():
        yield key
        if isinstance(value, dict):
            yield from _every_key(value)


def _unknown_keys(loaded: dict, node: CfgNode, prefix: str = "") -> Iterator[str]:
    for key, value in loaded.items():
        if key not in node:
            if not node.is_new_allowed():
                yield f"{prefix}{key}"
        elif isinstance(value, dict) and isinstance(node[key], CfgNode):
            yield from _unknown_keys(value, node[key], f"{prefix}{key}.")


def _refuse_unknown(cfg: CfgNode, unknown: list[str], where: str) -> None:
    if not unknown:
        return
    known = list(all_keys(cfg))
    lines = [f"  {key}{_suggest(key, known)}" for key in unknown]
    raise ConfigError("\n".join([f"{where}: there are no such keys:", *lines]))


def _suggest(key: str, known: list[str]) -> str:
    """The nearest key among its siblings, or else among all."""
    parent = key.rpartition(".")[0]
    siblings = [name for name in known if name.rpartition(".")[0] == parent]
    return did_you_mean(key, siblings) or did_you_mean(key, known)


def _readable(error: Exception) -> str:
    """yacs' message; where a float was written without its point, what to write."""
    # str() of a KeyError is in quotes.
    text = str(error.args[0] if error.args else error)
    if text.startswith("Type mismatch (<class 'float'> vs. <class 'int'>"):
        text += " (write the number with a decimal point: 2.0, not 2)"
    return text
