"""The extras of the package: what a message tells people to install is in one, and `all` is all of them."""

import re
import tomllib
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]


def test_all_is_the_union_of_the_others() -> None:
    (everything,) = map(Requirement, EXTRAS["all"])
    assert everything.name == PROJECT["name"]
    assert everything.extras == EXTRAS.keys() - {"all", "dev", "docs"}


def test_what_a_message_tells_people_to_install_is_in_an_extra() -> None:
    known = {Requirement(text).name for name in EXTRAS for text in EXTRAS[name] if name not in ("all", "dev")}
    sources = (path.read_text(encoding="utf-8") for path in (ROOT / "src").rglob("*.py"))
    told = {name for text in sources for name in re.findall(r"pip install ([a-z][\w-]*)", text)}
    assert told - {"llama-cpp-python"} <= known  # compiled for minutes: only for `export --check`
    assert told & known


def test_the_wheel_that_readme_names_is_this_version() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert f"dist/tracenas-{PROJECT['version']}-py3-none-any.whl[all]" in readme
