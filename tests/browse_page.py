"""Uses the page as a visitor does, in headless Chromium; run with the Python of `make page`.

    python tests/browse_page.py ADDRESS FOLDER

FOLDER holds the files to upload; screenshots and downloads go into it. Prints one JSON object of
what the page showed. The first model takes all kinds of media, the second one generates them.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path

from playwright.sync_api import Browser, Locator, Page, expect, sync_playwright

BOT = "[data-testid=bot]"
USER = "[data-testid=user]"
SIDE = ".dialogue:visible"
PHONE = {"width": 390, "height": 844}
SECONDS = 90
_RECORD = """selector => {
    window.texts = new Set();
    new MutationObserver(() => {
        const answers = document.querySelectorAll(selector);
        if (answers.length) window.texts.add(answers[answers.length - 1].innerText.trim());
    }).observe(document.body, {subtree: true, childList: true, characterData: true});
}"""
"""Records what the last answer shows, change by change."""

Seen = dict[str, object]


def attach(page: Page, *files: Path) -> None:
    page.set_input_files("#question input[type=file]", [str(file) for file in files])
    expect(page.locator("#question .thumbnail-item")).to_have_count(len(files))


def ask(page: Page, text: str, *files: Path) -> None:
    if files:
        attach(page, *files)
    box = page.locator("#question textarea")
    box.fill(text)
    box.press("Enter")
    expect(box).to_have_value("")


def last_answer(page: Page, count: int, side: int = 0) -> str:
    """Return the text of an answer once there are so many, and it is complete."""
    dialogue = page.locator(SIDE).nth(side)
    answers = dialogue.locator(BOT)
    expect(answers).to_have_count(count)
    expect(dialogue.get_by_label("Retry").last).to_be_enabled()
    return answers.last.inner_text().strip()


def choose(page: Page, label: str, name: str) -> None:
    box = page.get_by_label(label, exact=True)
    box.click()
    # Another list may still be closing, with an option of the same name.
    options = page.locator(f"#{box.get_attribute('aria-controls')}")
    options.get_by_role("option", name=name, exact=True).click()


def start_anew(page: Page) -> None:
    page.click("#clear")
    expect(page.locator(BOT)).to_have_count(0)


def download(page: Page, button: str, folder: Path) -> Path:
    """Press a button that saves the dialogue; return the downloaded file."""
    suffix = ".json" if button == "#json" else ".zip"
    page.click(button)
    link = page.locator(f"#saved a[href$='{suffix}']").first
    expect(link).to_be_visible()
    with page.expect_download() as found:
        link.click()
    path = folder / found.value.suggested_filename
    found.value.save_as(path)
    return path


def setting(page: Page, label: str) -> Locator:
    return page.get_by_label(f"number input for {label}")


def visit_uploads(page: Page, folder: Path) -> Seen:
    """Ask about each kind of medium; a bad file in between."""
    page.evaluate(_RECORD, f".dialogue {BOT}")
    ask(page, "What is it", folder / "digit.png")
    seen: Seen = {"answer": last_answer(page, 1)}
    seen["steps"] = page.evaluate("window.texts.size")
    seen["pictures"] = page.locator(f"{SIDE} {USER} img").count()
    page.screenshot(path=folder / "light.png")
    ask(page, "Why", folder / "bad.png")
    seen["bad"] = last_answer(page, 2)
    page.screenshot(path=folder / "bad-file.png")
    for number, name in enumerate(("sound.flac", "video.mp4", "points.npy"), 3):
        ask(page, "Which digit", folder / name)
        seen[name] = last_answer(page, number)
    seen["sounds"] = page.locator(f"{SIDE} {USER} .minimal-audio-player").count()
    seen["videos"] = page.locator(f"{SIDE} {USER} video").count()
    page.screenshot(path=folder / "media.png")
    seen["json"] = json.loads(download(page, "#json", folder).read_text())
    seen["shard"] = download(page, "#shard", folder).name
    return seen


def visit_changes(page: Page, folder: Path) -> Seen:
    """Retry, edit, undo; sampling controls; stop."""
    page.get_by_text("Sampling").click()
    setting(page, "Longest answer").fill("1")
    setting(page, "Longest answer").press("Tab")
    ask(page, "What is it", folder / "digit.png")
    seen: Seen = {"short": last_answer(page, 1)}
    setting(page, "Longest answer").fill("40")
    setting(page, "Temperature").fill("1.5")
    setting(page, "Temperature").press("Tab")
    page.get_by_label("Retry").last.click()
    expect(page.locator(f"{SIDE} {BOT}").last).not_to_have_text(str(seen["short"]))
    seen["retried"] = last_answer(page, 1)
    page.locator(SIDE).get_by_label("Edit").last.click()
    page.locator(f"{SIDE} textarea").fill("Which colour is it")
    page.locator(SIDE).get_by_label("Submit").click()
    expect(page.locator(f"{SIDE} {BOT}").last).not_to_have_text(str(seen["retried"]))
    seen["edited"] = last_answer(page, 1)
    seen["question"] = page.locator(f"{SIDE} {USER}").last.inner_text().strip()
    page.get_by_label("Undo").last.click()
    expect(page.locator(f"{SIDE} {BOT}")).to_have_count(0)
    seen["taken_back"] = page.locator("#question textarea").input_value()
    start_anew(page)
    setting(page, "Longest answer").fill("450")
    setting(page, "Longest answer").press("Tab")
    ask(page, "Go on")
    answer = page.locator(f"{SIDE} {BOT}").last
    expect(answer).not_to_have_text("…")
    page.click("#stop")
    seen["stopped"] = last_answer(page, 1)
    setting(page, "Longest answer").fill("4")
    setting(page, "Longest answer").press("Tab")
    ask(page, "And then")
    seen["after_stop"] = last_answer(page, 2)
    ask(page, "")
    expect(page.get_by_text("Ask something, or drop a file.")).to_be_visible()
    return seen


def visit_generation(page: Page, folder: Path) -> Seen:
    """A generated picture, and two models side by side."""
    choose(page, "Model", "any")
    ask(page, "a red 7")
    picture = page.locator(f"{SIDE} {BOT} img").first
    expect(picture).to_be_visible()
    expect(page.get_by_label("Retry").last).to_be_enabled()
    seen: Seen = {"generated": picture.evaluate("each => each.naturalWidth")}
    page.screenshot(path=folder / "generated.png")
    start_anew(page)
    choose(page, "Model", "omni")
    choose(page, "Compare with", "any")
    expect(page.locator(SIDE)).to_have_count(2)
    ask(page, "What is it", folder / "digit.png")
    seen["sides"] = [last_answer(page, 1, side=0), ""]
    expect(page.locator(SIDE).nth(1).locator(BOT).first).to_be_visible()
    expect(page.locator(SIDE).nth(1).get_by_label("Retry").last).to_be_enabled()
    seen["sides_asked"] = [page.locator(SIDE).nth(n).locator(USER).count() for n in range(2)]
    page.screenshot(path=folder / "sides.png")
    return seen


def visit_phone(page: Page, folder: Path) -> Seen:
    """A phone at night."""
    ask(page, "What is it", folder / "digit.png")
    last_answer(page, 1)
    page.screenshot(path=folder / "phone-dark.png")
    wide = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
    light = """getComputedStyle(document.body).backgroundColor.match(/\\d+/g).slice(0, 3)
        .reduce((sum, each) => sum + Number(each), 0) / 3"""
    box = page.locator("#question").bounding_box()
    assert box is not None
    return {
        "overflow": page.evaluate(wide),
        "brightness": page.evaluate(light),
        "box_below": box["y"] + box["height"] - PHONE["height"],
    }


Visit = Callable[[Page, Path], Seen]
VISITS: dict[str, tuple[Visit, dict[str, object]]] = {
    "uploads": (visit_uploads, {}),
    "changes": (visit_changes, {}),
    "generation": (visit_generation, {}),
    "phone": (visit_phone, {"viewport": PHONE, "color_scheme": "dark"}),
}


def visit(chromium: Browser, address: str, name: str, folder: Path) -> Seen:
    run, options = VISITS[name]
    page = chromium.new_page(**{"viewport": {"width": 1280, "height": 900}, **options})
    page.set_default_timeout(1000 * SECONDS)
    requested: list[str] = []
    page.on("request", lambda request: requested.append(request.url))
    page.goto(address)
    try:
        seen = run(page, folder)
    except Exception:
        page.screenshot(path=folder / f"failed-{name}.png")
        raise
    # Nothing is loaded from elsewhere.
    seen["hosts"] = sorted(
        {url for url in requested if not url.startswith((address, "data:", "blob:"))}
    )
    page.close()
    return seen


def main(address: str, folder: str, *names: str) -> None:
    expect.set_options(timeout=1000 * SECONDS)
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(
            executable_path="/usr/bin/chromium", args=["--no-sandbox"]
        )
        seen = {name: visit(chromium, address, name, Path(folder)) for name in names or VISITS}
        sys.stdout.write(json.dumps(seen) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
