"""Make ``docs/screenshot.png``, the README's picture of the page: the real app, a real model, a synthetic slice.

``python docs/make_screenshot.py --model model-lite``; it needs playwright (requirements-dev.txt) and Chromium.
"""

import argparse
import os
import shutil
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))

from brain_tumor_mri.labels import LABELS, TITLES  # noqa: E402
from brain_tumor_mri.page import ModelHandle, build_page, launch  # noqa: E402

CHROMIUM_ARGS = ("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--hide-scrollbars")


def take_screenshot(url: str, label: str, width: int, scheme: str, chromium: str, output: Path) -> None:
    """Click a synthetic example on the page at ``url``, wait for its answer, and save the whole page as PNG.

    Args:
        url: address of the running app.
        label: the example's label.
        width: of the window, in CSS pixels.
        scheme: ``"light"`` or ``"dark"``.
        chromium: path of the browser.
        output: the PNG to write.
    """
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=list(CHROMIUM_ARGS))
        page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        page.goto(url)
        page.get_by_role("button", name=f"Synthetic: {TITLES[label].lower()}").click()
        page.wait_for_selector("#answer .finding", timeout=120_000)
        page.wait_for_selector(".viewer input[type=range]", timeout=120_000)  # comes with the heat maps
        page.mouse.move(0, 0)
        page.evaluate("document.activeElement.blur()")
        page.wait_for_timeout(1_000)  # hover, progress and scrolling come to rest
        page.evaluate("window.scrollTo(0, 0)")  # the notice follows the view
        page.wait_for_timeout(500)
        output.parent.mkdir(parents=True, exist_ok=True)
        page.screenshot(path=output, full_page=True)
        browser.close()


def main() -> int:
    """Parse the arguments, serve the page on a free port, and photograph it."""
    parser = argparse.ArgumentParser(description="Make the README's screenshot of the page.")
    parser.add_argument("--model", default=str(REPOSITORY / "model-lite"), help="folder or Hub id of the weights")
    parser.add_argument("--example", choices=LABELS, default="glioma", help="synthetic slice to show")
    parser.add_argument("--width", type=int, default=1440, help="window width in pixels")
    parser.add_argument("--scheme", choices=("light", "dark"), default="light")
    parser.add_argument("--output", type=Path, default=REPOSITORY / "docs" / "screenshot.png")
    arguments = parser.parse_args()

    chromium = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    if not chromium:
        print("Chromium is not installed; on Debian: apt-get install chromium", file=sys.stderr)
        return 2
    model = ModelHandle(arguments.model, name=Path(arguments.model).name)
    demo = build_page(model, REPOSITORY / "examples")
    _, url, _ = launch(demo, prevent_thread_lock=True, quiet=True)
    try:
        take_screenshot(url, arguments.example, arguments.width, arguments.scheme, chromium, arguments.output)
    finally:
        demo.close(verbose=False)
    print(f"{arguments.output} written")
    return 0


if __name__ == "__main__":
    sys.exit(main())
