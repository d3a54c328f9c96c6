"""The page by axe-core, in light and dark mode, as wide as a phone and as a desk.

axe-core is a package of npm: `npm install axe-core` in the checkout, or ISOFLOP_AXE names its
axe.min.js.
"""

import html
import os
from pathlib import Path

import pytest

from research.report import build
from tests.report.test_answer import swept
from tests.report.test_report import in_browser, workdir

ROOT = Path(__file__).parents[2]
AXE = Path(os.environ.get("ISOFLOP_AXE") or ROOT / "node_modules/axe-core/axe.min.js")
GRAVE = ("serious", "critical")
MODES = {"light": "--blink-settings=preferredColorScheme=1",
         "dark": "--blink-settings=preferredColorScheme=0"}  # fmt: skip
RUN = """<script>{axe}</script><script>
setTimeout(async () => {{
  const found = await axe.run(document, {{resultTypes: ["violations"]}});
  const told = found.violations.map((v) => [v.impact, v.id, v.nodes.map((n) => n.html)]);
  const dark = matchMedia("(prefers-color-scheme: dark)").matches;
  const wide = document.documentElement.scrollWidth;
  parent.postMessage([dark, innerWidth, wide, found.passes.length, told], "*");
}}, 1500);
</script></body>"""
# A window of a browser is no narrower than 500 pixels, a frame is.
FRAME = """<!doctype html><body>
<iframe src="{source}" style="width: {width}px; height: 900px; border: 0"></iframe>
<script>
addEventListener("message", (event) => {{
  const out = document.createElement("pre");
  out.id = "probe";
  out.textContent = JSON.stringify(event.data);
  document.body.append(out);
}});
</script></body>"""


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    if not AXE.exists():
        pytest.skip("no axe-core: npm install axe-core, or ISOFLOP_AXE=…/axe.min.js")
    folder = tmp_path_factory.mktemp("sweep")
    build.write_report(workdir(folder, swept()))
    return (folder / "report.html").read_text()


def findings(page, folder, mode, width):
    """What axe-core finds on a page: (impact, rule, elements)."""
    before, _, after = page.rpartition("</body>")
    axe = AXE.read_text().replace("</script", "<\\/script")
    inner = folder / "inner.html"
    inner.write_text(before + RUN.format(axe=axe) + after)
    frame = FRAME.format(source=html.escape(inner.as_uri()), width=width)
    (dark, seen, wide, passes, found), _ = in_browser(frame, folder, "</body>", MODES[mode])
    assert (dark, seen) == (mode == "dark", width)
    assert wide <= width
    assert passes > 10
    return found


@pytest.mark.slow
@pytest.mark.parametrize("width", [400, 1200])
@pytest.mark.parametrize("mode", MODES)
def test_axe_finds_nothing_serious(page, tmp_path, mode, width):
    assert not findings(page, tmp_path, mode, width)


@pytest.mark.slow
def test_axe_finds_what_is_wrong(page, tmp_path):
    worse = page.replace("--dim: #595959", "--dim: #b9b9b9")
    worse = worse.replace('role="img" aria-label=', 'role="img" data-label=')
    found = findings(worse, tmp_path, "light", 1200)
    assert {rule for impact, rule, _ in found if impact in GRAVE} >= {"color-contrast"}
