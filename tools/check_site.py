"""Opens every page of the site in a browser: `python -m tools.check_site docs/_build`.

Reports links that lead nowhere, errors in the console, requests to other hosts, figures that do not
show, formulas that are not set, pages wider than a telephone, and a search that finds nothing. It
needs playwright and a Chromium or Chrome, found on the path or given by --browser.
"""

from __future__ import annotations

import argparse
import functools
import http.server
import shutil
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote, urldefrag, urljoin

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
DESKTOP, TELEPHONE = 1280, 390
PAGES_TO_DRAW = ("index", "getting_started", "howto/memory", "explanations/kernels", "notation")
# What a page has, as the browser sees it.
LOOK = """() => ({
  ids: [...document.querySelectorAll('[id]')].map(e => e.id),
  links: [...document.querySelectorAll('a[href]')].map(e => e.href),
  broken: [...document.images].filter(e => e.complete && !e.naturalWidth).map(e => e.src),
  formulas: document.querySelectorAll('.math:not(:has(math)), merror').length,
  overflow: document.scrollingElement.scrollWidth - window.innerWidth,
})"""


class Page(NamedTuple):
    """What one page has, and what is wrong with it."""

    ids: set[str]
    links: set[str]
    faults: list[str]


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Serves files and writes no log."""

    def log_message(self, *args: Any) -> None:
        """Says nothing."""


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """The address of a server of a folder, for the length of a `with`."""
    handler = functools.partial(Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()


def watched(browser: Any, root: str, faults: list[str]) -> Any:
    """Returns a tab that writes down what goes wrong in it."""
    tab = browser.new_page()

    def request(url: str) -> None:
        if url.startswith(("http", "ws")) and not url.startswith(root):
            faults.append(f"other host: {url}")

    tab.on("console", lambda m: m.type == "error" and faults.append(f"console: {m.text}"))
    tab.on("pageerror", lambda error: faults.append(f"script: {error}"))
    tab.on("requestfailed", lambda failed: faults.append(f"request: {failed.url}"))
    tab.on("request", lambda sent: request(sent.url))
    return tab


def visit(tab: Any, address: str, faults: list[str]) -> Page:
    """Opens a page in both widths."""
    faults.clear()
    tab.set_viewport_size({"width": DESKTOP, "height": 900})
    tab.goto(address)
    # Pictures further down are loaded when they come into sight.
    tab.evaluate("() => document.querySelectorAll('img').forEach(e => e.loading = 'eager')")
    tab.wait_for_function("() => [...document.images].every(e => e.complete)")
    seen = tab.evaluate(LOOK)
    wide = {DESKTOP: seen["overflow"]}
    tab.set_viewport_size({"width": TELEPHONE, "height": 900})
    wide[TELEPHONE] = tab.evaluate(LOOK)["overflow"]
    wrong = [f"figure: {src}" for src in seen["broken"]]
    wrong += [f"formulas that are not set: {seen['formulas']}"] * bool(seen["formulas"])
    wrong += [f"{n} px wider than a window of {width}" for width, n in wide.items() if n > 0]
    return Page({*seen["ids"]}, {*seen["links"]}, [*faults, *wrong])


def wrong_links(pages: dict[str, Page], folder: Path, root: str) -> Iterator[str]:
    """Yields the links inside of the site that lead nowhere."""
    for name, page in pages.items():
        for link in sorted(page.links):
            address, fragment = urldefrag(urljoin(root + name, link))
            if not address.startswith(root):
                continue
            target = unquote(address.removeprefix(root).partition("?")[0]) or "index.html"
            target += "index.html" if target.endswith("/") else ""
            ids = pages[target].ids if target in pages else None
            if not (folder / target).is_file():
                yield f"{name}: no page {target}"
            elif fragment and ids is not None and unquote(fragment) not in ids:
                yield f"{name}: no place #{fragment} in {target}"


def search_faults(browser: Any, address: str) -> Iterator[str]:
    """Yields what is wrong with the search, from a server or from files."""
    tab = browser.new_page()
    tab.goto(f"{address}search.html?q=tangent+kernel")
    try:
        tab.wait_for_selector("#search-results li", timeout=20_000)
    except Exception as error:
        yield f"search at {address.partition(':')[0]}: nothing found ({type(error).__name__})"
    tab.close()


def draw(browser: Any, root: str, names: list[str], folder: Path) -> None:
    """Writes pictures of pages, in both widths, light and dark."""
    folder.mkdir(parents=True, exist_ok=True)
    for width in (DESKTOP, TELEPHONE):
        for scheme in ("light", "dark"):
            context = browser.new_context(
                viewport={"width": width, "height": 1000}, color_scheme=scheme
            )
            for name in names:
                tab = context.new_page()
                tab.goto(f"{root}{name}.html")
                tab.wait_for_load_state("networkidle")
                tab.screenshot(path=folder / f"{name.replace('/', '-')}-{width}-{scheme}.png")
                tab.close()
            context.close()


def check(folder: Path, browser_path: str | None, pictures: Path | None, draws: list[str]) -> int:
    """Checks a site, prints what is wrong and returns how much."""
    from playwright.sync_api import sync_playwright

    executable = browser_path or next(filter(None, map(shutil.which, BROWSERS)), None)
    names = [
        str(path.relative_to(folder))
        for path in sorted(folder.rglob("*.html"))
        if "_static" not in path.parts
    ]
    with served(folder) as root, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        heard: list[str] = []
        tab = watched(browser, root, heard)
        pages = {name: visit(tab, root + name, heard) for name in names}
        faults = [f"{name}: {fault}" for name, page in pages.items() for fault in page.faults]
        faults += wrong_links(pages, folder, root)
        for address in (root, f"{folder.resolve().as_uri()}/"):
            faults += search_faults(browser, address)
        if pictures is not None:
            draw(browser, root, draws, pictures)
        browser.close()
    links = sum(len(page.links) for page in pages.values())
    print(*faults, f"{len(pages)} pages, {links} links, {len(faults)} faults", sep="\n")
    return len(faults)


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="the site that `make docs` has built")
    parser.add_argument("--browser", help="path of a Chromium or Chrome")
    parser.add_argument("--pictures", type=Path, help="folder for pictures of some pages")
    parser.add_argument("--draw", nargs="*", default=PAGES_TO_DRAW, help="which pages")
    given = parser.parse_args()
    sys.exit(check(given.folder, given.browser, given.pictures, list(given.draw)) > 0)


if __name__ == "__main__":
    main()
