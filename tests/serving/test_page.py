"""The page in headless Chromium, wide and on a phone, light and dark, by keyboard and by drop."""

import numpy as np
import pytest
from PIL import Image
from screens import CONTRAST, SCREENS, chromium, fits
from serving import encoded, serving

__all__ = ["chromium"]  # a fixture

pytestmark = pytest.mark.browser

TOKEN = "correct-horse-battery"
DROP = """([data]) => {
  const bytes = Uint8Array.from(atob(data), (c) => c.charCodeAt(0));
  const files = new DataTransfer();
  files.items.add(new File([bytes], "dropped.png", { type: "image/png" }));
  const event = (name) => new DragEvent(name, { dataTransfer: files, bubbles: true });
  document.querySelector("main").dispatchEvent(event("dragover"));
  document.querySelector("main").dispatchEvent(event("drop"));
}"""


@pytest.fixture
def visit(chromium):
    """Opens the page of a server; what it says that is wrong fails the test."""
    opened, wrong = [], []

    def go(server, **screen):
        context = chromium.new_context(**screen)
        opened.append(context)
        page = context.new_page()
        own = f"http://127.0.0.1:{server.port}/"
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("console", lambda told: wrong.append(told.text) if told.type == "error" else None)
        page.on(
            "request",
            lambda asked: (
                None if asked.url.startswith((own, "blob:", "data:")) else wrong.append(asked.url)
            ),
        )
        page.goto(own)
        page.wait_for_selector("#desk:not([hidden]), #entry:not([hidden])")
        return page

    yield go
    for context in opened:
        context.close()
    # A refused request is an error of the console too.
    assert [text for text in wrong if "Failed to load resource" not in text] == []


@pytest.mark.parametrize("screen", SCREENS)
def test_a_picture_is_classified_and_found_by_the_keyboard(
    visit, server, pictures, screen, tmp_path
):
    page = visit(server, **SCREENS[screen])
    # Heard from the start: a listener that comes just before the key may come too late.
    page.on("filechooser", lambda chooser: chooser.set_files(pictures / "07.png"))
    assert page.title() == "tiny" and "22 pictures" in page.inner_text("#about")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "file"
    page.keyboard.press("Space")
    page.wait_for_function("() => document.getElementById('shown').naturalWidth > 0")
    while page.evaluate("document.activeElement.id") != "labels":
        page.keyboard.press("Tab")
    page.keyboard.type("cat, a dog with a rather long name that does not fit the line, <b>bird</b>")
    page.keyboard.press("Enter")
    page.wait_for_selector(".scores li")
    shown = page.eval_on_selector_all(
        ".scores li", "rows => rows.map(r => [r.children[0].textContent, r.children[1].value])"
    )
    labels = ["cat", "a dog with a rather long name that does not fit the line", "<b>bird</b>"]
    image = encoded((pictures / "07.png").read_bytes())
    expected = server.ask("/api/classify", {"image": image, "labels": labels}).json["labels"]
    assert [label for label, _ in shown] == [one["label"] for one in expected]
    assert [float(value) for _, value in shown] == pytest.approx(
        [one["probability"] for one in expected], abs=1e-5
    )
    widths = page.eval_on_selector_all(
        ".scores li", "rows => rows.map(r => r.style.getPropertyValue('--share'))"
    )
    assert widths == [f"{100 * one['probability']:.1f}%" for one in expected]
    while page.evaluate("document.activeElement.id") != "query":
        page.keyboard.press("Tab")
    page.keyboard.type("picture 7")
    page.keyboard.press("Enter")
    page.wait_for_selector("#search figure")
    page.wait_for_function(
        "() => [...document.querySelectorAll('#search img')].every(i => i.naturalWidth)"
    )
    assert page.locator("#search figure").count() == 20
    fields = {"query": "picture 7", "image": image}
    found = server.ask("/api/search", fields).json["results"]
    captions = page.eval_on_selector_all(
        "#search figcaption span", "all => all.map(one => one.textContent)"
    )
    assert captions == [one["captions"][0] for one in found]
    assert fits(page)
    for selector in ("h1", "#about", "button", ".scores li", "#search figcaption span", "label b"):
        if page.locator(selector).first.is_visible():
            assert page.locator(selector).first.evaluate(CONTRAST) >= 4.5, selector
    dark = SCREENS[screen]["color_scheme"] == "dark"
    page.screenshot(path=tmp_path / "page.png", full_page=True)
    seen = np.asarray(Image.open(tmp_path / "page.png").convert("L"))
    assert (np.median(seen) < 100) == dark and len(np.unique(seen)) > 50


def test_one_is_dropped_and_what_is_wrong_is_said(visit, server, pictures):
    page = visit(server, **SCREENS["wide"])
    page.fill("#labels", "cat, dog")
    page.click("#classify button")
    problem = page.locator("#classify .problem")
    assert problem.inner_text() == "Choose a picture first."
    page.evaluate(DROP, [encoded(b"no picture")])
    page.wait_for_function(
        "() => document.querySelector('#classify .problem').textContent.includes('cannot be used')"
    )
    assert problem.evaluate(CONTRAST) >= 4.5
    page.evaluate(DROP, [encoded((pictures / "03.png").read_bytes())])
    page.wait_for_selector(".scores li")
    assert problem.inner_text() == "" and page.inner_text("#file-name") == "dropped.png"
    page.fill("#template", "no place for it")
    page.keyboard.press("Enter")
    page.wait_for_function(
        "() => document.querySelector('#classify .problem').textContent.includes('neither a known')"
    )
    page.fill("#minus", "snow")
    page.click("#search button")
    page.wait_for_selector("#search figure")
    assert page.locator("#search figcaption span").first.inner_text() == "picture 3"
    page.click("#remove")
    page.click("#search button")
    assert "Write what to look for" in page.inner_text("#search .problem")


def test_the_token_is_asked_for_and_kept_in_memory_alone(visit, index, pictures):
    with serving(index=index, token=TOKEN) as server:
        page = visit(server, **SCREENS["phone"])
        assert page.evaluate("document.activeElement.id") == "token"
        page.keyboard.type("wrong")
        page.keyboard.press("Enter")
        page.wait_for_function("() => document.querySelector('#entry .problem').textContent")
        assert fits(page) and page.locator("#desk").is_hidden()
        page.keyboard.type(TOKEN)
        page.keyboard.press("Enter")
        page.wait_for_selector("#desk:not([hidden])")
        page.fill("#query", "picture 7")
        page.keyboard.press("Enter")
        page.wait_for_selector("#search img")
        kept = page.evaluate(
            "JSON.stringify([localStorage, sessionStorage, document.cookie, location.href])"
        )
        assert TOKEN not in kept and TOKEN not in page.content()
        page.reload()
        page.wait_for_selector("#entry:not([hidden])")
