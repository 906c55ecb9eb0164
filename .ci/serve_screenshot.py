"""Ask the chat page questions in headless Chromium and save a picture: python .ci/serve_screenshot.py URL OUT.png QUESTION..."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

MOST_BYTES = 150_000
ARGUMENTS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip


def main(url: str, out: str, *questions: str) -> None:
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=shutil.which("chromium"), headless=True, args=ARGUMENTS)
        page = browser.new_page(viewport={"width": 820, "height": 720})
        page.set_default_timeout(300_000)
        page.goto(url)
        for question in questions:
            page.fill("#text", question)
            page.press("#text", "Enter")
            page.wait_for_selector("#send:visible")
        if page.locator(".message.assistant").count() != len(questions):
            sys.exit(f"not answered: {page.text_content('#status')}")
        page.screenshot(path=out)
        browser.close()
    if (size := Path(out).stat().st_size) > MOST_BYTES:
        sys.exit(f"{out} has {size} bytes, more than {MOST_BYTES}")


if __name__ == "__main__":
    main(*sys.argv[1:])
