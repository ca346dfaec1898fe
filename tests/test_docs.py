"""The API pages: one for every module, readable, and made without a device or a warning."""

import html
import os
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MODULES = sorted(path.relative_to(ROOT) for path in (ROOT / "charlm_jax").rglob("*.py"))


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of pages. JAX finds no device, so a module that uses one on import would fail."""
    folder = tmp_path_factory.mktemp("site")
    environment = {**os.environ, "JAX_PLATFORMS": "none"}
    made = subprocess.run([ROOT / "scripts" / "docs", folder], capture_output=True, text=True, env=environment)
    assert (made.returncode, made.stdout, made.stderr) == (0, f"{folder}/index.html\n", "")
    return folder


def words(page):
    """Return the text of a page, without the source code that it shows."""
    text = re.sub(r'<div class="pdoc-code codehilite">.*?</div>', "", page.read_text(), flags=re.S)
    return " ".join(html.unescape(re.sub(r"<[^>]*>", "", text)).split())


def test_every_module_has_its_page_and_every_subpackage_says_what_is_in_it(site):
    for module in MODULES:
        page = site / (module.parent if module.name == "__init__.py" else module).with_suffix(".html")
        (first, *_) = (ROOT / module).read_text().removeprefix('"""').splitlines()
        assert first.removesuffix('"""').replace("`", "") in words(page), module
    assert "charlm_jax.learning.objective: What training minimises" in words(site / "charlm_jax" / "learning.html")


def test_annotations_are_as_they_are_written(site):
    page = words(site / "charlm_jax" / "model" / "cell.html")
    assert "recurrent_kernel: Float[Array, 'hidden gates'], carry: LayerCarry, projected: " in page
    assert "projected: Float[Array, '*#batch gates'], gate: " in page
    for module in MODULES:
        if module.name != "__init__.py":
            said = words(site / module.with_suffix(".html"))
            assert not re.search(r"jaxtyping\.|_jax\.Array|Alias for field|ForwardRef", said), module
