"""What is installed from a built wheel is the whole program, the page's files among it."""

import importlib.util
import os
import shutil
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from tests.conftest import tiny_pair

REPOSITORY = Path(__file__).parents[1]


def pip(*arguments, cwd):
    offline = ("--no-deps", "--no-index", "--disable-pip-version-check", "--quiet")
    subprocess.run([sys.executable, "-m", "pip", *map(str, arguments), *offline], cwd=cwd, check=True)


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder into which a wheel was installed that was built from a copy of the repository."""
    missing = [name for name in ("pip", "setuptools") if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"building without a network needs {' and '.join(missing)} in this environment")
    base = tmp_path_factory.mktemp("wheel")
    shutil.copytree(REPOSITORY / "llm_modules", base / "copy/llm_modules", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, base / "copy")
    pip("wheel", ".", "--no-build-isolation", "--wheel-dir", base, cwd=base / "copy")
    (wheel,) = base.glob("*.whl")
    pip("install", wheel, "--target", base / "site", cwd=base)
    return base / "site"


def files_of(package):
    return {str(file.relative_to(package)) for file in package.rglob("*") if file.is_file() and file.suffix != ".pyc"}


def test_wheel_carries_every_file_of_the_package(installed):
    carried = files_of(installed / "llm_modules")
    assert carried == files_of(REPOSITORY / "llm_modules")
    assert "serving/page/index.html" in carried


def test_command_line_serves_the_page_from_an_installed_wheel(installed, talking_source, tmp_path):
    tiny_pair(source=str(talking_source)).save_pretrained(tmp_path / "module")
    script = "import llm_modules.cli as c, sys; print(c.__file__, file=sys.stderr); c.app()"
    command = [sys.executable, "-c", script, "serve", str(tmp_path / "module"), "--port", "0"]
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    with (
        (tmp_path / "log").open("w+") as log,
        subprocess.Popen(
            command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=log, text=True
        ) as server,
    ):
        try:
            told = server.stdout.readline()
            log.seek(0)
            assert " a page at " in told and str(installed) in log.read()
            with urllib.request.urlopen(told.split(" a page at ")[1].strip()) as page:
                assert b"<html" in page.read()
        finally:
            server.terminate()
