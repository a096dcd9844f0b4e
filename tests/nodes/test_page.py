"""ComfyUI's own page: workflows open, run, show their previews, are saved and come back; templates and help pages.

Skipped, with the reason, where there is no host, no playwright or no Chromium.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from comfyui import blueprints, browser, host
from comfyui import page as files

pytestmark = pytest.mark.host

ALL = sorted((host.ROOT / "workflows").glob("*.json"))
WORKFLOWS = [path for path in ALL if "LDZNetTinyWorld" in path.read_text(encoding="utf-8")]  # others need a checkpoint
PROMPTS, HELP = host.ROOT / "tests" / "data" / "prompts", sorted((host.ROOT / "web" / "docs").glob("*.md"))
EARLIER = sorted((host.ROOT / "tests" / "data" / "workflows").glob("*/*.json"))  # by the commit they come from
SHOWING = {"LDZNetPreview", "LDZNetSteered", "PreviewImage", "MaskPreview"}
BLUEPRINTS = sorted((host.ROOT / "subgraphs").glob("*.json"))


@pytest.fixture(scope="module")
def page(server: host.Server) -> Iterator[browser.Page]:
    """The page, once for this file."""
    reason = browser.reason_to_skip()
    if reason:
        pytest.skip(reason)
    opened = browser.Page(server.port)
    yield opened
    opened.close()


def written(path: Path) -> dict[str, Any]:
    """The prompt that write_prompts.py wrote of a workflow."""
    place = PROMPTS / path.name
    assert place.exists(), f"Expected {place.name} in tests/data/prompts: run tests/comfyui/write_prompts.py"
    return json.loads(place.read_text(encoding="utf-8"))


def without_titles(prompt: dict[str, Any]) -> dict[str, Any]:
    """A prompt as the host needs it."""
    return {key: {name: node[name] for name in ("class_type", "inputs")} for key, node in prompt.items()}


def comparable(infos: dict[str, Any], workflow: browser.Workflow) -> set[int]:
    """The nodes of a workflow that this host has as the file does: all, or where it is an earlier one, whose own nodes
    have fewer widgets, those of this pack."""
    earlier = "search_aliases" not in infos["LDZNetSegment"]
    return {node["id"] for node in workflow["nodes"] if not earlier or node["type"].startswith("LDZNet")}


@pytest.mark.parametrize("path", ALL, ids=lambda path: path.stem)
def test_prompts_without_a_page_are_those_of_the_page(server: host.Server, path: Path) -> None:
    infos, expected = server.get("/object_info"), without_titles(written(path))
    found, numbers = files.to_prompt(path, infos), map(str, comparable(infos, browser.read(path)))
    assert found.keys() == expected.keys()
    for number in found.keys() & numbers:
        assert found[number] == expected[number]


@pytest.mark.parametrize("path", ALL, ids=lambda path: path.stem)
def test_the_page_opens_and_queues_what_the_file_says(page: browser.Page, server: host.Server, path: Path) -> None:
    workflow, infos = browser.read(path), server.get("/object_info")
    page.open(workflow, path.stem)
    assert page.missing() == []
    opened = page.workflow()
    queued, expected, numbers = page.prompt(), written(path), comparable(infos, workflow)
    assert queued.keys() == expected.keys()
    for number in numbers:
        assert browser.nodes_of(opened)[number] == browser.nodes_of(workflow)[number]
        assert queued.get(str(number)) == expected.get(str(number))
    assert browser.links_of(opened) == browser.links_of(workflow)
    types = {node["id"]: node["type"] for node in opened["nodes"]}
    for source, output, target, socket, _ in browser.links_of(opened):
        assert output in infos[types[source]]["output_name"]
        assert any(socket in part for part in infos[types[target]]["input"].values()), (types[target], socket)


@pytest.mark.parametrize("path", EARLIER, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_workflows_of_earlier_commits_open_as_they_were(page: browser.Page, server: host.Server, path: Path) -> None:
    """With every link, and every stored value where it was; widgets that came later have their defaults."""
    stored = browser.read(path)
    page.open(stored, path.stem)
    assert page.missing() == []
    opened = page.workflow()
    assert browser.links_of(opened) == browser.links_of(stored)
    for number in comparable(server.get("/object_info"), stored):
        kind, values = browser.nodes_of(stored)[number]
        assert browser.nodes_of(opened)[number][0] == kind
        assert browser.nodes_of(opened)[number][1][: len(values)] == values


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_the_button_runs_it_and_its_nodes_show_pictures(page: browser.Page, path: Path) -> None:
    workflow = browser.read(path)
    page.open(workflow, path.stem)
    end = page.run()
    assert end["kind"] == "execution_success", end
    kinds = SHOWING & {node["type"] for node in workflow["nodes"]}
    assert kinds
    for kind in kinds:
        shown = page.pictures(kind)
        assert all(images and all(min(size) > 0 for size in images) for images in shown), (kind, shown)


def test_saved_workflows_come_back_the_same(page: browser.Page, server: host.Server) -> None:
    saved = {}
    for path in ALL:
        page.open(browser.read(path), path.stem)
        saved[path] = page.save(f"saved {path.stem}")
    page.reload()
    infos = server.get("/object_info")
    for path, workflow in saved.items():
        page.open(workflow, path.stem)
        assert page.missing() == []
        again, first = page.workflow(), browser.read(path)
        for number in comparable(infos, first):
            one, *others = (browser.nodes_of(each)[number] for each in (first, workflow, again))
            assert others == [one, one], path.stem
        assert browser.links_of(again) == browser.links_of(workflow) == browser.links_of(first), path.stem


@pytest.mark.parametrize(
    "typed", ["mask by text", "mask from prompt", "attention map", "clipseg", "segment anything", "grounding dino"]
)
def test_the_page_s_search_finds_it(page: browser.Page, server: host.Server, typed: str) -> None:
    if "search_aliases" not in server.get("/object_info/LDZNetSegment")["LDZNetSegment"]:
        pytest.skip("this ComfyUI knows no aliases of a node")
    assert "Segment by Text" in page.found_by(typed)


def test_the_page_shows_the_help_of_a_node(page: browser.Page) -> None:
    page.open(browser.read(host.ROOT / "workflows" / "1_generate_and_segment.json"), "help")
    panel = page.help_of("LDZNetSegment")
    heading = (host.ROOT / "web/docs/LDZNetSegment.md").read_text(encoding="utf-8").splitlines()[0].lstrip("# ")
    panel.get_by_role("heading", name=heading).wait_for()
    picture = panel.locator("img").first.element_handle()
    page.tab.wait_for_function("image => image.naturalWidth > 0", arg=picture)


@pytest.mark.parametrize("path", BLUEPRINTS, ids=lambda path: path.stem)
def test_a_blueprint_is_offered_and_runs(page: browser.Page, path: Path) -> None:
    """As the host offers it, in a graph of the tiny world: a picture or a mask comes out."""
    answer = page.get("/api/global_subgraphs")
    if not answer.ok:
        pytest.skip("this ComfyUI offers no blueprints")
    offered = {entry["name"]: key for key, entry in answer.json().items()}
    blueprint = json.loads(page.get(f"/api/global_subgraphs/{offered[path.stem]}").json()["data"])
    assert blueprint == browser.read(path)
    workflow = blueprints.in_a_graph(blueprint)
    page.open(workflow, path.stem)
    assert page.missing() == []
    end = page.run()
    assert end["kind"] == "execution_success", end
    for kind in {"PreviewImage", "MaskPreview"} & {node["type"] for node in workflow["nodes"]}:
        shown = page.pictures(kind)
        assert all(images and all(min(size) > 0 for size in images) for images in shown), (kind, shown)


@pytest.mark.parametrize("path", HELP, ids=lambda path: path.stem)
def test_help_pages_are_where_the_page_looks_for_them(page: browser.Page, path: Path) -> None:
    answer = page.get(f"/extensions/{host.PACK}/docs/{path.name}")
    assert answer.ok
    assert answer.text() == path.read_text(encoding="utf-8")


def test_templates_are_listed_with_thumbnails(page: browser.Page) -> None:
    listed = page.get("/api/workflow_templates").json()[host.PACK]
    assert sorted(listed) == [path.stem for path in ALL]
    assert [path.stem for path in ALL if not path.with_suffix(".jpg").exists()] == []  # pictures.py makes them
    dialog = page.templates_of(host.PACK)
    for path in ALL:
        dialog.get_by_text(path.stem, exact=True).scroll_into_view_if_needed()  # the page loads what is in view
        thumbnail = dialog.locator(f'img[alt="{path.stem}"][src^="blob:"]').first  # a blob: one that it could load
        thumbnail.scroll_into_view_if_needed()
        assert page.get(f"/api/workflow_templates/{host.PACK}/{path.stem}.json").json() == browser.read(path)
        page.tab.wait_for_function("image => image.naturalWidth > 0", arg=thumbnail.element_handle())
    page.tab.keyboard.press("Escape")
    dialog.wait_for(state="hidden")


def test_the_console_has_no_error_of_this_pack(page: browser.Page) -> None:
    """Runs last in this file. The page looks for a help page in the user's language first, which none has."""
    ours = [error for error in page.errors if host.PACK in error or "LDZNet" in error]
    assert [error for error in ours if not error.endswith("/en.md")] == []
