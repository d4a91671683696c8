"""Uses the page as a visitor does, in headless Chromium; run with the Python of `make page`.

Prints one JSON object of what the page showed; screenshots go into the folder that is named.
"""

import json
import sys
from pathlib import Path

from playwright.sync_api import Page, expect, sync_playwright

BOT = ".dialogue [data-testid=bot]"
PHONE = {"width": 390, "height": 844}


def ask(page: Page, text: str, *files: Path) -> None:
    if files:
        page.set_input_files("#question input[type=file]", [str(file) for file in files])
        expect(page.locator("#question .thumbnail-item").first).to_be_visible()
    box = page.locator("#question textarea")
    box.fill(text)
    box.press("Enter")
    expect(box).to_have_value("")


def last_answer(page: Page, count: int) -> str:
    """Return the text of an answer once there are so many, and it is complete."""
    answers = page.locator(BOT)
    expect(answers).to_have_count(count)
    expect(page.get_by_label("Retry").last).to_be_enabled()
    return answers.last.inner_text().strip()


def choose(page: Page, label: str, name: str) -> None:
    page.get_by_label(label, exact=True).click()
    page.get_by_role("option", name=name, exact=True).click()


def visit(page: Page, picture: Path, bad: Path, shots: Path) -> dict[str, object]:
    ask(page, "What is it", picture)
    seen: dict[str, object] = {"answer": last_answer(page, 1)}
    seen["shown"] = page.locator(".dialogue img").count()
    ask(page, "Why", bad)
    seen["bad"] = last_answer(page, 2)
    page.screenshot(path=shots / "light.png")
    page.click("#json")
    link = page.locator("#saved a").first.get_attribute("href")
    seen["messages"] = page.request.get(str(link)).json()
    page.click("#clear")
    expect(page.locator(BOT)).to_have_count(0)
    choose(page, "Model", "any")
    ask(page, "a red 7")
    expect(page.locator(".dialogue [data-testid=bot] img").first).to_be_visible()
    seen["generated"] = page.locator(".dialogue [data-testid=bot] img").first.evaluate(
        "each => each.naturalWidth"
    )
    page.screenshot(path=shots / "generated.png")
    return seen


def main(address: str, picture: str, bad: str, shots: str) -> None:
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(
            executable_path="/usr/bin/chromium", args=["--no-sandbox"]
        )
        page = chromium.new_page(viewport={"width": 1280, "height": 900})
        page.set_default_timeout(120_000)
        expect.set_options(timeout=120_000)
        page.goto(address)
        seen = visit(page, Path(picture), Path(bad), Path(shots))
        dark = chromium.new_page(viewport=PHONE, color_scheme="dark")
        dark.goto(address)
        ask(dark, "What is it", Path(picture))
        last_answer(dark, 1)
        dark.screenshot(path=Path(shots) / "phone-dark.png")
        seen["overflow"] = dark.evaluate(
            "document.documentElement.scrollWidth - document.documentElement.clientWidth"
        )
        sys.stdout.write(json.dumps(seen) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
