"""Makes docs/page.png anew: a workflow in ComfyUI's page, after it ran. Run it when nodes or weights change.

python tests/comfyui/screenshots.py
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import browser
import host

WORKFLOW, PICTURE = host.ROOT / "workflows" / "1_generate_and_segment.json", host.ROOT / "docs" / "page.png"
SHOWN = ("LDZNetPreview", "PreviewImage")
WIDTH, HEIGHT, SCALE = 1600, 900, 1.5
FREE = [85, 105, WIDTH - 25, HEIGHT - 60]  # left, top, right and bottom of what sidebar, tabs and buttons leave
TOAST_SECONDS, SETTLE_SECONDS = 60, 2
FIT = """([left, top, right, bottom]) => {
  const nodes = app.graph.nodes, title = LiteGraph.NODE_TITLE_HEIGHT, view = app.canvas.ds
  const x = Math.min(...nodes.map(node => node.pos[0])), y = Math.min(...nodes.map(node => node.pos[1])) - title
  const width = Math.max(...nodes.map(node => node.pos[0] + node.size[0])) - x
  const height = Math.max(...nodes.map(node => node.pos[1] + node.size[1])) - y
  const scale = Math.min((right - left) / width, (bottom - top) / height)
  view.scale = scale
  view.offset[0] = (left + right) / 2 / scale - x - width / 2
  view.offset[1] = (top + bottom) / 2 / scale - y - height / 2
  app.canvas.setDirty(true, true)
}"""


def make(page: browser.Page) -> None:
    """The picture: opens the workflow, runs it, fits it into the view and waits until messages are gone."""
    page.open(browser.read(WORKFLOW), WORKFLOW.stem)
    end = page.run()
    assert end["kind"] == "execution_success", end
    for kind in SHOWN:
        assert all(page.pictures(kind)), kind
    page.tab.evaluate(FIT, FREE)
    for state in ("visible", "hidden"):  # it comes a while after the end
        page.tab.get_by_text("Job completed").wait_for(state=state, timeout=TOAST_SECONDS * 1000)
    page.tab.mouse.move(WIDTH // 2, HEIGHT - 10)
    page.tab.wait_for_timeout(SETTLE_SECONDS * 1000)
    page.tab.screenshot(path=PICTURE)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        running = host.Server(Path(folder))
        try:
            opened = browser.Page(running.port, WIDTH, HEIGHT, SCALE)
            make(opened)
            opened.close()
        finally:
            running.stop()
