"""What the page draws itself from the soft maps of the last run, and that a run then gives the same.

Skipped, with the reason, where there is no host, no playwright or no Chromium.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from comfyui import browser, graphs, host

pytestmark = pytest.mark.host

WORKFLOW = host.ROOT / "workflows" / "1_generate_and_segment.json"
PREVIEW, SEGMENT = "LDZNetPreview", "LDZNetSegment"
TRIES = 20
LOOK = 400  # milliseconds after which a change must be seen: the page looks eight times a second
EVERY = """() => {
  const found = []
  const look = graph => { for (const node of graph.nodes) { found.push(node); if (node.subgraph) look(node.subgraph) } }
  look(app.rootGraph ?? app.graph)
  return found
}"""
ELEMENT = "node => node.widgets.find(widget => widget.name === 'shown').element"
SET = f"""([type, name, value]) => {{
  for (const node of ({EVERY})()) if (node.type === type)
    for (const widget of node.widgets) if (widget.name === name) widget.value = value
}}"""
SHOWN = f"""async ([type, seconds]) => {{
  const until = Date.now() + seconds * 1000
  for (;;) {{
    const nodes = ({EVERY})().filter(node => node.type === type)
    const canvases = nodes.map(({ELEMENT})).map(element => element.querySelector("canvas"))
    if (nodes.length && canvases.every(canvas => !canvas.hidden && canvas.width > 0) || Date.now() > until)
      return canvases.map(canvas => canvas.hidden ? null : [canvas.height, canvas.width,
        Array.from(canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data)])
    await new Promise(done => setTimeout(done, 100))
  }}
}}"""
LINES = f"""type =>
  ({EVERY})().filter(node => node.type === type).map({ELEMENT}).map(element => element.innerText)"""
CLICK = f"""([type, text]) => {{
  const rows = ({ELEMENT})(({EVERY})().find(node => node.type === type)).querySelectorAll(".ldznet-live > div > div")
  Array.from(rows).find(row => row.textContent.startsWith(text)).click()
}}"""
TELL = f"""type => {{
  const canvas = ({ELEMENT})(({EVERY})().find(node => node.type === type)).querySelector("canvas")
  const box = canvas.getBoundingClientRect()
  const middle = {{clientX: box.left + box.width / 2, clientY: box.top + box.height / 2}}
  canvas.dispatchEvent(new MouseEvent("click", middle))
}}"""
INTO_SUBGRAPH = """type => {
  const node = app.graph.nodes.find(node => node.type === type)
  app.graph.convertToSubgraph(new Set([node]))
}"""

PLAIN = """() => {
  const node = LiteGraph.createNode("PreviewImage")
  node.addDOMWidget("plain", "PLAIN", Object.assign(document.createElement("canvas"), {className: "plain"}))
  app.graph.add(node)
}"""
PLAIN_SECONDS = 20


@pytest.fixture(scope="module")
def page(server: host.Server) -> Iterator[browser.Page]:
    """The page, once for this file."""
    reason = browser.reason_to_skip()
    if reason:
        pytest.skip(reason)
    opened = browser.Page(server.port)
    yield opened
    opened.close()


@pytest.fixture
def ran(page: browser.Page) -> browser.Page:
    """The page, in which workflow 1 is open and has run."""
    page.open(browser.read(WORKFLOW), "live")
    assert page.run()["kind"] == "execution_success"
    return page


def shown(page: browser.Page, kind: str = PREVIEW, seconds: float = 30) -> list[Any]:
    """RGB h w 3 in 0..255 that each node of a type shows; None for one that shows none."""
    page.tab.wait_for_timeout(LOOK)
    found = page.tab.evaluate(SHOWN, [kind, seconds])
    return [part and torch.tensor(part[2]).view(part[0], part[1], 4)[..., :3] for part in found]


def moved(page: browser.Page, before: Any, kind: str = PREVIEW) -> Any:
    """What the first node of a type shows as soon as it is unlike `before`."""
    for _ in range(TRIES):
        now = shown(page, kind)[0]
        if not torch.equal(now, before):
            return now
    raise AssertionError(f"{kind} still shows what it showed")


def computed(server: host.Server, page: browser.Page) -> tuple[torch.Tensor, torch.Tensor]:
    """Of what the page would run now: the preview's overlay in 0..255, and the soft maps of its phrases p h w."""
    prompt = {key: {name: node[name] for name in ("class_type", "inputs")} for key, node in page.prompt().items()}
    preview = next(key for key, node in prompt.items() if node["class_type"] == PREVIEW)
    prompt |= {"save": graphs.save([preview, 0], "overlay")}
    prompt |= {"save maps": graphs.save(prompt[preview]["inputs"]["segmentation"], "maps")}
    failed = host.error_of(server.run(prompt))
    assert failed is None, failed
    return server.saved("overlay")[0][0] * 255, server.saved("maps")[0]["probabilities"][0]


@pytest.mark.parametrize(
    "changes",
    [
        {"threshold": 0.25},
        {"threshold": 0.8, "opacity": 0.3},
        {"threshold": 0.5, "grow": 5, "opacity": 1.0},
        {"threshold": 0.5, "grow": -2},
        {"threshold": 0.4, "phrases": "2"},
    ],
    ids=str,
)
def test_a_run_gives_what_was_shown(server: host.Server, ran: browser.Page, changes: dict[str, Any]) -> None:
    """But for pixels whose probability lies within 1/255 of the threshold, and their neighbours within the growth."""
    before = shown(ran)[0]
    for name, value in changes.items():
        ran.tab.evaluate(SET, [PREVIEW, name, value])
    now = moved(ran, before)
    overlay, maps = computed(server, ran)
    unsure = ((maps - changes["threshold"]).abs() <= 1 / 255).any(0).float()
    reach = abs(changes.get("grow", 0)) + 2
    unsure = torch.nn.functional.max_pool2d(unsure[None, None], 2 * reach + 1, 1, reach)[0, 0] > 0
    assert unsure.float().mean() < 0.5
    assert (now - overlay).abs().amax(-1)[~unsure].max() < 2


def test_segment_by_text_follows_its_own_threshold_and_so_does_the_preview(ran: browser.Page) -> None:
    before = {kind: shown(ran, kind)[0] for kind in (SEGMENT, PREVIEW)}
    ran.tab.evaluate(SET, [SEGMENT, "threshold", 0.97])
    for kind, picture in before.items():
        moved(ran, picture, kind)


def test_lines_turn_phrases_off_and_a_click_tells_what_is_there(ran: browser.Page) -> None:
    before = shown(ran)[0]
    (lines,) = ran.tab.evaluate(LINES, PREVIEW)
    first = lines.splitlines()[0].partition(":")[0]
    assert "score" in lines
    ran.tab.evaluate(CLICK, [PREVIEW, first])
    (lines,) = ran.tab.evaluate(LINES, PREVIEW)
    assert lines.splitlines()[0] == f"{first}: off"
    moved(ran, before)
    wanted = next(node["inputs"]["phrases"] for node in ran.prompt().values() if node["class_type"] == PREVIEW)
    assert wanted == ", ".join(str(number) for number in range(2, len(lines.splitlines()) + 1))
    ran.tab.evaluate(CLICK, [PREVIEW, first])
    assert torch.equal(shown(ran)[0], before)
    ran.tab.evaluate(TELL, PREVIEW)
    assert re.search(r"at 6[34], 6[34]: .+ 0\.\d\d \(score", ran.tab.evaluate(LINES, PREVIEW)[0])


def test_after_a_reload_it_is_there_until_the_files_are_gone(
    server: host.Server, ran: browser.Page, tmp_path: Path
) -> None:
    """Gone for a while: the host names the same files again, as long as it keeps what the nodes gave."""
    before, saved = shown(ran)[0], ran.workflow()
    ran.reload()
    ran.open(saved, "again")
    assert torch.equal(shown(ran)[0], before)
    temporary = server.base / "temp"
    names = [file.rename(tmp_path / file.name).name for file in temporary.glob("ldznet_*")]
    try:
        ran.reload()
        ran.open(saved, "gone")
        ran.tab.wait_for_timeout(3 * LOOK)
        assert shown(ran, seconds=1) == [None]
        assert "Run again" in ran.tab.evaluate(LINES, PREVIEW)[0]
    finally:
        for name in names:
            (tmp_path / name).rename(temporary / name)
    assert ran.run()["kind"] == "execution_success"
    assert torch.equal(shown(ran)[0], before)


def test_in_a_subgraph_and_beside_another_preview(page: browser.Page) -> None:
    """Events are matched by the ids of subgraphs; each of two previews has its own settings."""
    workflow = browser.read(WORKFLOW)
    page.open(workflow, "twice")
    page.tab.evaluate(
        """type => {
      const node = app.graph.nodes.find(node => node.type === type), other = LiteGraph.createNode(type)
      app.graph.add(other)
      node.getInputNode(0).connect(node.getInputLink(0).origin_slot, other, 0)
      other.widgets.find(widget => widget.name === "threshold").value = 0.95
    }""",
        PREVIEW,
    )
    page.tab.evaluate(INTO_SUBGRAPH, PREVIEW)
    assert page.run()["kind"] == "execution_success"
    one, other = shown(page)
    assert one is not None
    assert not torch.equal(one, other)


def require_elements_in_nodes(page: browser.Page) -> None:
    """Skips where the page's Vue nodes have no place for an element that any node brings: 0.3.64's, an experiment."""
    from playwright.sync_api import TimeoutError as NotSeen

    page.tab.evaluate(PLAIN)
    page.command("Comfy.Canvas.FitView")
    try:
        page.tab.locator("canvas.plain:visible").wait_for(timeout=PLAIN_SECONDS * 1000)
    except NotSeen:
        pytest.skip("this page's Vue nodes show no element that a node brings")


def test_in_nodes_2(server: host.Server, ran: browser.Page) -> None:
    """The page's own Vue nodes: the picture is in the node, and follows the widget."""
    saved = ran.workflow()
    ran.tab.request.post(f"{ran.address}/api/settings", data={"Comfy.VueNodes.Enabled": True})
    try:
        ran.reload()
        ran.open(saved, "vue")
        before = shown(ran)[0]
        require_elements_in_nodes(ran)
        ran.tab.locator(".ldznet-live canvas:visible").first.wait_for()
        ran.tab.evaluate(SET, [PREVIEW, "threshold", 0.9])
        moved(ran, before)
    finally:
        ran.tab.request.post(f"{ran.address}/api/settings", data={"Comfy.VueNodes.Enabled": False})
        ran.reload()
