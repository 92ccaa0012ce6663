"""Headless Chromium at the sizes and in the colours that pages are looked at."""

import shutil

import pytest

FLAGS = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update"),
)
SCREENS = {
    "wide": {"viewport": {"width": 1280, "height": 900}, "color_scheme": "light"},
    "phone": {
        "viewport": {"width": 390, "height": 844},
        "color_scheme": "dark",
        "has_touch": True,
        "is_mobile": True,
    },
    "small phone": {"viewport": {"width": 320, "height": 640}, "color_scheme": "light"},
}
# The contrast of an element's words and the ground that they stand on, by WCAG.
CONTRAST = """element => {
  const light = (colour) => {
    const [r, g, b] = colour.match(/[\\d.]+/g).map((part) => {
      const x = part / 255;
      return x <= 0.03928 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  let ground = element;
  const colour = (one) => getComputedStyle(one).backgroundColor;
  while (colour(ground) === "rgba(0, 0, 0, 0)") ground = ground.parentElement;
  const both = [light(getComputedStyle(element).color), light(colour(ground))];
  return (Math.max(...both) + 0.05) / (Math.min(...both) + 0.05);
}"""


@pytest.fixture(scope="module")
def chromium():
    # These tests run where they are asked for alone: without what they need, they have failed.
    try:
        from playwright.sync_api import sync_playwright
    except ImportError as error:
        pytest.fail(f"it needs `pip install -e '.[browser_test]'`: {error}", pytrace=False)
    path = shutil.which("chromium")
    if path is None:
        pytest.fail(
            "it needs a chromium on the PATH, as of `apt-get install chromium`", pytrace=False
        )
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        browser.close()


def fits(page):
    return page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
