"""ComfyUI's own page in headless Chromium, for tests and pictures: opens workflows, queues, saves and exports them.

It talks with the host alone: whatever else the page asks for is refused.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
from pathlib import Path
from typing import Any
from urllib.parse import quote

Workflow = dict[str, Any]
SECONDS, CLICK_SECONDS = 240, 60  # for a page or a prompt; for a click or a dialog
SEARCH_SECONDS = 1  # that the page takes to list what was typed
SETTINGS = {  # of a user who has been here before
    "Comfy.TutorialCompleted": True,
    "Comfy.Notification.ShowVersionUpdates": False,
    "Comfy.VersionCompatibility.DisableWarnings": True,
    "Comfy.Minimap.Visible": False,
    "Comfy.Workflow.Persist": False,
    "Comfy.RightSidePanel.IsOpen": False,
    "Comfy.RightSidePanel.ShowErrorsTab": False,  # of the workflow that the page opens with
    "Comfy.Graph.CanvasInfo": False,
}
SCREENS = {"PreviewAny"}  # its widgets are the page's own, for the text that it shows

READY = "() => window.app?.extensionManager && window.app.canvas && Object.keys(LiteGraph.registered_node_types).length"
OPEN = "async ([workflow, name]) => { await app.loadGraphData(workflow, true, true, name) }"
MISSING = "() => app.graph.nodes.map(node => node.type).filter(type => !(type in LiteGraph.registered_node_types))"
SERIALIZE = "() => JSON.parse(JSON.stringify(app.graph.serialize()))"
PROMPT = "async () => (await app.graphToPrompt()).output"
LISTEN = """seconds => {
  window.ended = new Promise(done => {
    for (const kind of ["execution_success", "execution_error", "execution_interrupted"])
      app.api.addEventListener(kind, event => done({kind, ...event.detail}), {once: true})
    setTimeout(() => done({kind: `no end in ${seconds} seconds`, errors: app.lastNodeErrors}), seconds * 1000)
  })
}"""
ENDED = "() => window.ended"
PICTURES = """async ([type, seconds]) => {
  const until = Date.now() + seconds * 1000
  const drawn = node => node.widgets?.find(widget => widget.name === "shown")?.element.querySelector("canvas")
  const sizes = node => {
    const canvas = drawn(node)
    if (canvas) return canvas.hidden ? [] : [[canvas.width, canvas.height]]
    return (node.imgs ?? []).map(image => [image.naturalWidth, image.naturalHeight])
  }
  for (;;) {
    const shown = app.graph.nodes.filter(node => node.type === type).map(sizes)
    if (shown.every(found => found.some(([width]) => width > 0)) || Date.now() > until) return shown
    await new Promise(done => setTimeout(done, 100))
  }
}"""
SELECT = """async ([type, seconds]) => {
  const until = Date.now() + seconds * 1000, pause = ms => new Promise(done => setTimeout(done, ms))
  while (!document.querySelector("[data-testid=info-button]") && Date.now() < until) {
    app.canvas.deselectAll()  // the page overlooks a selection that comes too soon after opening
    await pause(500)
    app.canvas.selectNode(app.graph.nodes.find(node => node.type === type))
    await pause(1000)
  }
}"""
SAVE = "() => { app.extensionManager.command.execute('Comfy.SaveWorkflow') }"
COMMAND = "async name => { await app.extensionManager.command.execute(name) }"


def chromium() -> str | None:
    """$CHROMIUM, else what the path has."""
    return os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")


def reason_to_skip() -> str | None:
    """Why no page can be opened here; None where one can."""
    if importlib.util.find_spec("playwright") is None:
        return 'no playwright: pip install -e ".[browser]"'
    return None if chromium() else "no Chromium in $CHROMIUM or on the path"


class Page:
    """The page of the host at `port`; `errors` is what its console complained of."""

    def __init__(self, port: int, width: int = 1600, height: int = 900, scale: float = 1.0) -> None:
        from playwright.sync_api import sync_playwright

        self.address = f"http://127.0.0.1:{port}"
        self.errors: list[str] = []
        self._playwright = sync_playwright().start()
        self._browser = self._playwright.chromium.launch(executable_path=chromium())
        self.tab = self._browser.new_page(viewport={"width": width, "height": height}, device_scale_factor=scale)
        self.tab.set_default_timeout(CLICK_SECONDS * 1000)
        self.tab.set_default_navigation_timeout(SECONDS * 1000)
        self.tab.route(lambda url: not url.startswith(self.address), lambda route: route.abort())
        self.tab.on("console", self._heard)
        self.tab.on("pageerror", lambda error: self.errors.append(f"{error.message} {error.stack}"))
        self.tab.request.post(f"{self.address}/api/settings", data=SETTINGS)
        self.reload()

    def close(self) -> None:
        """Ends this Chromium."""
        self._browser.close()
        self._playwright.stop()

    def reload(self) -> None:
        """The page anew, as after F5."""
        self.tab.goto(self.address)
        self.tab.wait_for_function(READY, timeout=SECONDS * 1000)

    def open(self, workflow: Workflow, name: str = "workflow") -> None:
        """A workflow in the page's own format."""
        self.tab.evaluate(OPEN, [workflow, name])

    def missing(self) -> list[str]:
        """Types of nodes that the page does not know."""
        return self.tab.evaluate(MISSING)

    def workflow(self) -> Workflow:
        """What the page would save."""
        return self.tab.evaluate(SERIALIZE)

    def prompt(self) -> dict[str, Any]:
        """What the page would queue: `app.graphToPrompt`."""
        return self.tab.evaluate(PROMPT)

    def run(self) -> dict[str, Any]:
        """Presses the button and waits: the host's last word, its type under "kind"."""
        self.tab.evaluate(LISTEN, SECONDS)
        self.tab.get_by_test_id("queue-button").first.click()
        return self.tab.evaluate(ENDED)

    def command(self, name: str) -> None:
        """One of the page's commands, as its menus and keys call them."""
        self.tab.evaluate(COMMAND, name)

    def pictures(self, kind: str, seconds: float = 30) -> list[list[list[int]]]:
        """For each node of a type the (width, height) of what it shows, as soon as all show something."""
        return self.tab.evaluate(PICTURES, [kind, seconds])

    def save(self, name: str) -> Workflow:
        """Saves the open workflow under a new name, through the page's own dialog; what the host then has."""
        self.tab.evaluate(SAVE)
        dialog = self.tab.get_by_role("dialog")
        dialog.get_by_role("textbox").fill(name)
        with self.tab.expect_response(lambda answer: answer.request.method == "POST" and "userdata" in answer.url):
            dialog.get_by_role("button", name="Confirm").click()
        return self.get(f"/api/userdata/workflows%2F{name}.json").json()

    def help_of(self, kind: str) -> Any:
        """The panel with the help page of a node type that the open workflow has."""
        self.tab.evaluate(SELECT, [kind, CLICK_SECONDS])
        self.tab.get_by_test_id("info-button").click()
        return self.tab.locator(".node-help-content")

    def found_by(self, typed: str) -> list[str]:
        """Names of the nodes that the page's own search lists for what a user types, best first."""
        self.command("Workspace.SearchBox.Toggle")
        box = self.tab.get_by_placeholder("Add a node...")
        box.fill(typed)
        self.tab.wait_for_timeout(SEARCH_SECONDS * 1000)
        names = [option.inner_text().splitlines()[0] for option in self.tab.get_by_role("option").all()]
        self.tab.keyboard.press("Escape")
        box.wait_for(state="hidden")
        return names

    def templates_of(self, pack: str) -> Any:
        """The template browser, with what a pack brings."""
        self.command("Comfy.BrowseTemplates")
        dialog = self.tab.get_by_role("dialog")
        dialog.get_by_text(pack, exact=True).first.click()
        return dialog

    def get(self, path: str) -> Any:
        """The answer to a path of the host, asked for as the page does."""
        return self.tab.request.get(self.address + quote(path, safe="/%?=&"))

    def _heard(self, message: Any) -> None:
        if message.type == "error":
            self.errors.append(f"{message.text} {message.location.get('url', '')}")


def links_of(workflow: Workflow) -> set[tuple[Any, ...]]:
    """Links by names, for the page adds a socket to every widget: from node, output, to node, input, type."""
    nodes = {node["id"]: node for node in workflow["nodes"]}
    found = set()
    for _, source, output, target, slot, kind in workflow["links"]:
        names = nodes[source]["outputs"][output]["name"], nodes[target]["inputs"][slot]["name"]
        found.add((source, names[0], target, names[1], kind))
    return found


def nodes_of(workflow: Workflow) -> dict[int, tuple[str, Any]]:
    """Type and widget values of each node, but for those that the page itself gives it."""
    return {
        node["id"]: (node["type"], [] if node["type"] in SCREENS else node.get("widgets_values") or [])
        for node in workflow["nodes"]
    }


def read(path: Path) -> Workflow:
    """A workflow from its file."""
    return json.loads(path.read_text(encoding="utf-8"))
