# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""PEP 517 backend: the published source distribution in, a pure-Python Detectron2 wheel out."""

import ast
import contextlib
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from edits import EDITS, apply_edits

HERE = Path(__file__).resolve().parent

# Every .py file in this distribution is the one of the release's tag v0.6. Its C++ sources are not
# in it, so its own setup.py cannot build it.
REQUIREMENT = "pb1-detectron2==0.6"
SHA256 = "5d2e9e51e523ec72f6a31cca04b0a515492e9514b773a3d134cedc0677170b29"


def pip_settings() -> dict[str, str]:
    """Return pip's settings by option name (``index-url``, ...), as pip itself would merge them."""
    # pip's build isolation works through these variables and would hide pip from itself.
    env = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONNOUSERSITE")}
    command = [sys.executable, "-m", "pip", "config", "list"]
    listed = subprocess.run(command, env=env, capture_output=True, text=True)
    if listed.returncode:  # another front end, without pip: the variables are what is left
        names = ("index-url", "extra-index-url", "no-index", "find-links", "trusted-host")
        variables = {n: os.environ.get("PIP_" + n.replace("-", "_").upper()) for n in names}
        return {n: v for n, v in variables.items() if v}
    lines = [line.partition("=") for line in listed.stdout.splitlines() if "=" in line]
    found = {}
    for section in ("global.", "install.", ":env:."):  # later sections win, as in pip
        for key, _, value in lines:
            if key.startswith(section):
                found[key.removeprefix(section)] = str(ast.literal_eval(value))
    return found


def make_finder(settings: dict[str, str]):
    """Return an index client for the configured indexes, or for its own default without any."""
    from unearth import PackageFinder

    if settings.get("cert"):
        os.environ.setdefault("SSL_CERT_FILE", settings["cert"])
    finder = PackageFinder(
        index_urls=settings.get("index-url", "").split(),
        trusted_hosts=settings.get("trusted-host", "").split(),
        no_binary=[":all:"],
    )
    if settings.get("no-index", "").lower() in ("1", "true", "yes", "on"):
        finder.sources.clear()
        settings = {**settings, "extra-index-url": ""}
    for url in settings.get("extra-index-url", "").split():
        finder.add_index_url(url)
    for place in settings.get("find-links", "").split():
        is_url = len(urlsplit(place).scheme) > 1  # one letter is a drive of Windows
        finder.add_find_links(place if is_url else Path(place).absolute().as_uri())
    return finder


def verify(archive: Path) -> None:
    """Raise RuntimeError unless the archive is the source distribution these edits are for."""
    found = hashlib.sha256(archive.read_bytes()).hexdigest()
    if found != SHA256:
        raise RuntimeError(f"{archive.name}: sha256 is {found}, expected {SHA256}")


def fetch(folder: Path) -> Path:
    """Download the source distribution into ``folder``; return the root of its unpacked sources."""
    finder = make_finder(pip_settings())
    matches = finder.find_matches(REQUIREMENT)
    if not matches:
        raise RuntimeError(f"no package index that pip is configured for has {REQUIREMENT}")
    archive = Path(finder.download(matches[0].link, folder))
    verify(archive)
    shutil.unpack_archive(archive, folder / "sources")
    return next((folder / "sources").iterdir())


def prepare(sources: Path) -> None:
    """Turn the release's sources into a project that setuptools builds without compiling."""
    for name in ("setup.py", "setup.cfg"):
        (sources / name).unlink()
    for info in sources.glob("*.egg-info"):
        shutil.rmtree(info)
    apply_edits(sources, EDITS)
    shutil.copy(HERE / "no_extension.py", sources / "detectron2")
    shutil.copy(HERE / "pyproject.toml", sources)


@contextlib.contextmanager
def working_in(folder: Path) -> Iterator[None]:
    """Make ``folder`` the current one for a while, which is where setuptools looks."""
    before = os.getcwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def prepare_metadata_for_build_wheel(metadata_directory, config_settings=None):
    """Write the metadata, which needs no sources, so that a resolver gets it at once."""
    from setuptools import build_meta

    target = os.path.abspath(metadata_directory)
    with tempfile.TemporaryDirectory() as temporary, working_in(Path(temporary)):
        shutil.copy(HERE / "pyproject.toml", temporary)
        return build_meta.prepare_metadata_for_build_wheel(target, config_settings)


def build_wheel(wheel_directory, config_settings=None, metadata_directory=None):
    """Fetch, verify, edit and build; return the wheel's file name."""
    from setuptools import build_meta

    target = os.path.abspath(wheel_directory)
    with tempfile.TemporaryDirectory() as temporary:
        sources = fetch(Path(temporary))
        prepare(sources)
        with working_in(sources):
            return build_meta.build_wheel(target, config_settings)
