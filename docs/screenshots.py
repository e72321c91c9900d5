"""`make screenshots`: each view of the page, light, dark and at phone width, as small PNGs beside this file."""

import argparse
import io
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright
from tqdm import tqdm

FOLDER = Path(__file__).parent
MODELS = ["runs/demo/arithmetic/model", "runs/demo/facts/model"]
QUESTION = "Find the sum of 47 and 38."
WIDE, NARROW = {"width": 1100, "height": 720}, {"width": 390, "height": 780}
SCREENS = {"light": ("light", WIDE), "dark": ("dark", WIDE), "phone": ("light", NARROW)}
VIEWS = ("chat", "compare", "inside")
NUM_TOKENS = {"chat": 160, "compare": 72, "inside": 160}  # what the source has to say beyond 72 is not worth the wait
TOKEN = 14  # of the answer that is looked into: far enough to be a figure of the problem
COLOURS = 128


@contextmanager
def served(models: Sequence[str]) -> Iterator[str]:
    """Address of a server of these models, for as long as the block lasts."""
    command = [sys.executable, "-m", "llm_modules.cli", "serve", *models, "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            said = server.stdout.readline()
            found = re.search(r"a page at (\S+)", said)
            if found is None:
                sys.exit("the server did not start; it says why above")
            yield found[1]
        finally:
            server.terminate()


def show(page: Page, view: str) -> None:
    """Bring a view to what its picture shows."""
    page.evaluate(f"location.hash = '{view}'")
    page.locator("[name=max_tokens]").evaluate("(field, number) => (field.value = number)", NUM_TOKENS[view])
    page.fill("#question", QUESTION)
    page.press("#question", "Enter")
    page.locator("#ask").wait_for(timeout=600_000)
    page.evaluate("document.activeElement.blur()")
    if view == "inside":
        page.locator("[role=option]").nth(TOKEN).click()


def save(page: Page, path: Path) -> None:
    """With few colours: text on paper needs no more, and the file is a third."""
    picture = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    picture.quantize(COLOURS, dither=Image.Dither.NONE).save(path, optimize=True)


def main() -> None:
    """Take all pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", default=MODELS, help="FOLDER or NAME=FOLDER, as for llm-modules serve")
    models = parser.parse_args().models
    chromium = shutil.which("chromium")
    if chromium is None:
        sys.exit("there is no chromium; install one (Debian, Ubuntu: apt install chromium)")
    missing = [model for model in models if not Path(model.partition("=")[2] or model).is_dir()]
    if missing:
        sys.exit(f"there is no {missing[0]}; train it first (make demo), or name other models")
    with served(models) as address, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium)
        page = browser.new_page(viewport=WIDE, device_scale_factor=1.5)
        page.goto(address)
        page.locator("#chat-model option").first.wait_for(state="attached")
        for view in tqdm(VIEWS, desc="views", unit=" views"):
            show(page, view)
            for screen, (scheme, size) in SCREENS.items():
                page.emulate_media(color_scheme=scheme)
                page.set_viewport_size(size)
                whole = page.evaluate("document.documentElement.scrollHeight")
                page.set_viewport_size(size | {"height": max(size["height"], whole)})
                save(page, FOLDER / f"page-{view}-{screen}.png")
            page.set_viewport_size(WIDE)
        browser.close()


if __name__ == "__main__":
    main()
