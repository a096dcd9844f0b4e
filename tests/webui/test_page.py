"""The section in the page of a real A1111 or Forge, in Chromium. `host.py` says what it needs beside Playwright."""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from webui import host

playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
pytestmark = [pytest.mark.webui, pytest.mark.slow]

CHROMIUM = "/usr/bin/chromium"
WAIT = 600_000  # milliseconds, on two cores that others use too
SOON = 30_000  # for what is no work of the model
ORIGINAL = np.asarray(host.picture())
SETTINGS = {"phrases": ["a dog", "the sky"], "threshold": 0.6, "refine": "none"}


@pytest.fixture(scope="module")
def webui(tmp_path_factory: pytest.TempPathFactory) -> Iterator[host.Webui]:
    with contextlib.closing(host.Webui(*host.found(), tmp_path_factory.mktemp("webui"), page=True)) as running:
        yield running


class Page:
    """img2img of a page that has just been opened, with the section open."""

    def __init__(self, page: Any, address: str, picture: Path) -> None:
        self.page, self.faults = page, list[str]()
        page.on("pageerror", lambda error: self.faults.append(str(error)))
        page.set_default_timeout(WAIT)
        page.goto(address)
        page.locator("#tabs button", has_text="img2img").first.click()
        page.locator("#img2img_image input[type=file]").first.set_input_files(picture)
        page.wait_for_function("document.querySelector('#img2img_image img')?.src.length > 10")
        page.locator("#tab_img2img").get_by_text("LD-ZNet: mask by words").first.click()
        for name, value in {"steps": 2, "width": host.SIZE[0], "height": host.SIZE[1]}.items():
            self.number(f"img2img_{name}", value)

    def number(self, name: str, value: float) -> None:
        box = self.page.locator(f"#{name} input[type=number]").first
        box.fill(str(value))
        box.press("Tab")

    def set(self, name: str, value: float) -> None:
        self.number(f"ldznet_img2img_{name}", value)

    def phrases(self, *phrases: str) -> None:
        self.page.locator("#ldznet_img2img_phrases textarea").fill("\n".join(phrases))

    def choose(self, name: str, label: str) -> None:
        self.page.locator(f"#ldznet_img2img_{name}").get_by_text(label, exact=True).click()

    def check(self, name: str) -> None:
        self.page.locator(f"#ldznet_img2img_{name} input[type=checkbox]").check()

    def said(self) -> str:
        return self.page.locator("#ldznet_img2img_said").last.inner_text()

    def wait_for(self, words: str) -> str:
        """What the section says, once it has these words in it."""
        playwright.expect(self.page.locator("#ldznet_img2img_said").last).to_contain_text(words, timeout=WAIT)
        return self.said()

    def show(self, *phrases: str) -> np.ndarray:
        self.phrases(*phrases)
        self.page.locator("#ldznet_show").click()
        self.wait_for(phrases[-1])
        return self.picture("#ldznet_overlay img")

    def changed(self, before: np.ndarray) -> np.ndarray:
        """The overlay once it is another one."""
        for _ in range(60):
            self.page.wait_for_timeout(250)
            now = self.picture("#ldznet_overlay img")
            if now.shape != before.shape or not np.array_equal(now, before):
                return now
        pytest.fail("the overlay did not change in 15 seconds")

    def picture(self, selector: str) -> np.ndarray:
        return self.fetched(self.page.locator(selector).first.get_attribute("src"))

    def fetched(self, source: str) -> np.ndarray:
        if source.startswith("data:"):
            return host.decoded(source.split(",", 1)[1])
        return np.asarray(Image.open(io.BytesIO(self.page.request.get(source).body())).convert("RGB"))

    def tab(self, name: str) -> None:
        """Opens one of img2img's tabs, or one within it."""
        self.page.locator("#mode_img2img button", has_text=name).first.click()

    def generated(self, count: int) -> list[np.ndarray]:
        """The `count` pictures that Generate gives."""
        self.page.locator("#img2img_generate").click()
        thumbnails = self.page.locator("#img2img_gallery .thumbnail-item img")
        thumbnails.nth(count - 1).wait_for()
        sources = [thumbnails.nth(i).get_attribute("src") for i in range(thumbnails.count())]
        return [self.fetched(source) for source in dict.fromkeys(sources)]

    def generate(self) -> np.ndarray:
        """The picture that Generate gives."""
        self.page.locator("#img2img_generate").click()
        gallery = self.page.locator("#img2img_gallery img")
        gallery.first.wait_for()
        return self.picture("#img2img_gallery img")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        running = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield running
        running.close()


@pytest.fixture
def page(webui: host.Webui, browser: Any, tmp_path: Path) -> Iterator[Page]:
    host.picture().save(tmp_path / "picture.png")
    opened = Page(browser.new_page(), webui.address, tmp_path / "picture.png")
    opened.choose("refine", "none")
    yield opened
    opened.page.close()
    assert not [fault for fault in opened.faults if "ldznet" in fault.lower()]


def asked(webui: host.Webui, **changed: Any) -> list[np.ndarray]:
    """The masks of the route."""
    body = {**SETTINGS, "image": host.encoded(host.picture()), **changed}
    return [host.decoded(part["mask"])[..., 0] for part in webui.post("/ldznet/segment", body)["masks"]]


def test_masks_follow_the_settings_without_another_pass(webui: host.Webui, page: Page) -> None:
    """a-person-mask-generator#62: the preview is there on a Forge too."""
    page.show("a cat")
    webui.witness()
    first = page.show("a dog", "the sky")
    passes = webui.witness()["passes"]
    assert passes > 0
    assert first.shape[0] > first.shape[1] * host.SIZE[1] / host.SIZE[0] + 10  # a legend below
    assert re.search(r"a dog: \d+\.\d % of the picture, score 0\.\d\d", page.said())
    seen = [first]
    for name, value in (("threshold", 0.7), ("grow", 5), ("feather", 9)):
        page.set(name, value)
        seen.append(page.changed(seen[-1]))
    assert webui.witness()["passes"] == passes
    page.show("a horse")
    assert webui.witness()["passes"] > passes


def test_what_is_shown_is_sent_and_repainted(webui: host.Webui, page: Page) -> None:
    """sd-webui-segment-anything#172, #202: picture and mask arrive in Inpaint upload, on a Forge too, to the bit."""
    page.set("threshold", 0.6)
    page.show("a dog", "the sky")
    page.page.locator("#ldznet_send").click()
    page.wait_for("sent to Inpaint upload")
    page.page.locator("#img_inpaint_mask img").first.wait_for()
    mask = np.maximum.reduce(asked(webui))
    assert np.array_equal(page.picture("#img_inpaint_mask img")[..., 0], mask)
    assert np.array_equal(page.picture("#img_inpaint_base img"), ORIGINAL)
    assert page.page.locator("#mode_img2img button.selected").first.inner_text().strip() == "Inpaint upload"
    page.number("img2img_mask_blur", 0)
    picture = page.generate()
    assert np.array_equal(picture[mask == 0], ORIGINAL[mask == 0])
    assert (picture[mask == 255] != ORIGINAL[mask == 255]).any(-1).mean() > 0.9


def test_masks_are_saved_one_for_each_phrase(webui: host.Webui, page: Page) -> None:
    page.set("threshold", 0.6)
    page.show("a dog", "the sky")
    page.page.locator("#ldznet_save").click()
    paths = re.findall(r"saved (.+\.png)", page.wait_for("saved"))
    folder = next(path for path in (Path(paths[0]), webui.folder / paths[0]) if path.is_file()).parent
    assert [Path(path).name for path in paths] == ["00000-a_dog.png", "00001-the_sky.png"]
    for path, mask in zip(paths, asked(webui), strict=True):
        assert np.array_equal(np.asarray(Image.open(folder / Path(path).name)), mask)


def test_each_file_of_the_batch_tab_has_a_mask_of_its_own(webui: host.Webui, page: Page, tmp_path: Path) -> None:
    """unprompted#44: a batch reused the mask of its first picture."""
    files, originals = tmp_path / "files", [host.picture(number) for number in range(2)]
    files.mkdir()
    for number, picture in enumerate(originals):
        picture.save(files / f"{number}.png")
    page.tab("Inpaint upload")
    page.number("img2img_mask_blur", 0)
    page.tab("Batch")
    if page.page.locator("#img2img_batch_source").count():
        page.tab("From directory")
    page.page.locator("#img2img_batch_input_dir").locator("textarea, input").first.fill(str(files))
    page.phrases("a dog")
    page.set("threshold", 0.6)
    page.check("enabled")
    pictures = page.generated(2)
    assert len(pictures) == 2
    for original, picture in zip(originals, pictures, strict=True):
        (mask,) = asked(webui, image=host.encoded(original), phrases=["a dog"])
        before, kept = np.asarray(original), mask == 0
        assert 0.05 < kept.mean() < 0.95
        assert np.array_equal(picture[kept], before[kept])
        assert (picture[mask == 255] != before[mask == 255]).any(-1).mean() > 0.5


OUTCOMES = {
    "found": (["a dog"], 0.6, "% of the picture"),
    "not found": (["a dog"], 1.0, "a dog: not found"),
    "refused": (["the - "], 0.5, "the picture is left as it is: Expected a phrase"),
}


@pytest.mark.parametrize("case", OUTCOMES)
def test_the_section_says_what_became_of_a_run(page: Page, case: str) -> None:
    phrases, threshold, words = OUTCOMES[case]
    page.phrases(*phrases)
    page.set("threshold", threshold)
    page.check("enabled")
    picture = page.generate()
    playwright.expect(page.page.locator("#ldznet_img2img_ran").last).to_contain_text(words, timeout=SOON)
    assert (case == "found") == (not np.array_equal(picture, ORIGINAL))


def test_nothing_is_sent_or_saved_before_a_look(page: Page) -> None:
    page.page.locator("#ldznet_send").click()
    page.wait_for("Press Show masks")
    assert page.page.locator("#mode_img2img button.selected").first.inner_text().strip() == "img2img"
    page.phrases()
    page.page.locator("#ldznet_show").click()
    page.wait_for("Expected phrases, got none")
    page.page.locator("#img2img_inpaint_tab-button, #mode_img2img button:has-text('Inpaint')").first.click()
    page.phrases("a dog")
    page.page.locator("#ldznet_show").click()
    page.wait_for("Expected a picture in this tab")
