# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Writes docs/zoo.md: which configs of Detectron2's model zoo can teach and be taught what.

    python -m experiments.zoo docs/zoo.md --results output/zoo.json

Every config that Detectron2 installs is built as it is, with random weights, and takes a real
training step on tiny images: as the teacher of a thin student, and as the student of a thin
teacher. What is done is kept in the results' file, so that a second call goes on; the page has
"-" for what is not done.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from .lazy_files import LazyZoo, lazy_networks
from .page import Results, document
from .yaml_files import Zoo, zoo_names

__all__ = ["main"]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("page", type=Path, help="the page to write")
    parser.add_argument("--results", type=Path, default=Path("output/zoo.json"))
    args = parser.parse_args(arguments)
    names, networks = zoo_names(), lazy_networks()
    results = json.loads(args.results.read_text()) if args.results.is_file() else {}
    args.results.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        for name, try_it in _open(results, names, list(networks), Path(folder)):
            start = time.perf_counter()
            found = try_it()
            results[name] = results.get(name, {}) | found
            args.results.write_text(json.dumps(results, indent=1) + "\n")
            print(f"{time.perf_counter() - start:5.1f} s {name}: {found}", flush=True)
            _write(args.page, results, names, networks)
    _write(args.page, results, names, networks)


def _open(
    results: Results, names: list[str], networks: list[str], folder: Path
) -> Iterator[tuple[str, Callable[[], dict[str, str]]]]:
    """Config -> the call that gives columns of it which are not among the results."""
    yamls, lazies = Zoo(folder), LazyZoo(folder)
    for name in (x for x in names if x not in results):
        yield name, partial(yamls.try_config, name)
    for role in ("", "student "):
        for name in (x for x in networks if f"{role}all" not in results.get(x, {})):
            yield name, partial(lazies.try_config, name, role)


def _write(page: Path, results: Results, names: list[str], networks: dict[str, list[str]]) -> None:
    """The page as far as it is known, so that a call may be stopped."""
    yamls, lazies = ({x: results.get(x, {}) for x in some} for some in (names, networks))
    page.write_text(document(yamls, lazies, networks))
