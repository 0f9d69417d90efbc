"""requirements.lock is what pyproject.toml asks for. Run: .venv/bin/python -m pytest tests/test_environment.py"""

import re
import tomllib
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
LOCK = (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def locked() -> dict[str, str]:
    return {normal(name): version for name, version in (line.split("==") for line in LOCK)}


def test_every_line_pins_a_version_and_names_no_place():
    """No index, no path, no URL: the lock works wherever packages come from."""
    assert [line for line in LOCK if not re.fullmatch(r"[A-Za-z0-9_.-]+==[A-Za-z0-9_.+!]+", line)] == []


def test_the_lock_holds_what_the_project_asks_for():
    wanted = [Requirement(text) for text in (*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["dev"])]
    versions = locked()
    assert [str(r) for r in wanted if not r.specifier.contains(versions.get(normal(r.name), "0"))] == []


def test_the_environment_is_the_locked_one():
    """Results are compared to the byte, so versions count; `make setup` mends it."""
    other = [f"{name}=={version}" for name, version in locked().items() if metadata.version(name) != version]
    assert other == []
