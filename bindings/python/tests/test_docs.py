"""The documents agree with the code and with each other."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from conftest import ROOT

import facegrad

PAGES = [ROOT / name for name in subprocess.check_output(["git", "ls-files", "*.md"], cwd=ROOT, text=True).split()]


def anchors(page: Path) -> set[str]:
    """The names that GitHub gives to a page's headings."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def test_the_configuration_page_describes_every_key_of_a_loss():
    page = (ROOT / "docs/configuration.md").read_text()
    keys = facegrad.build_info()["loss_keys"]
    assert len(keys) > 30 and not [key for key in keys if f"`{key}`" not in page]


def test_links_between_documents_lead_somewhere():
    broken, count = [], 0
    for page in PAGES:
        for path, anchor in re.findall(r"\]\(([^)#\s]*)#?([^)\s]*)\)", page.read_text()):
            if path.startswith(("http:", "https:")):
                continue
            count += 1
            target = page.parent / path if path else page
            if not target.exists() or (anchor and anchor not in anchors(target)):
                broken.append(f"{page.relative_to(ROOT)}: {path}#{anchor}")
    assert count > 50 and not broken


def test_the_files_that_the_architecture_names_exist():
    text = (ROOT / "ARCHITECTURE.md").read_text()
    files = re.findall(r"`([\w/]+\.rs)`", text)
    assert len(files) > 20 and not [name for name in files if not (ROOT / "src" / name).is_file()]


def test_every_file_that_a_release_changes_has_the_same_version():
    version = facegrad.__version__
    for name in ("Cargo.toml", "pyproject.toml", "bindings/comfyui/pyproject.toml"):
        assert re.findall(r'^version = "(.*)"$', (ROOT / name).read_text(), re.M) == [version], name
    soname = f"libfacegrad.so.{version.rpartition('.')[0]}"
    for name in ("bindings/cpp/facegrad_library.hpp", "docs/hosts.md", "docs/abi.md", "tests/header.rs"):
        assert re.findall(r"libfacegrad\.so\.\d+\.\d+", (ROOT / name).read_text()) == [soname], name


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) < 120
