"""Chromium on this machine: where it is, what it lacks, and how it is started.

A page's scripts are strangers' programs. They run in a browser that knows no way out but one proxy, resolves no
name, and keeps nothing.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
from pathlib import Path
from typing import Final

from resources.settings import Settings

__all__ = ["CHROMIUM_VARIABLE", "find_chromium", "launch_options", "missing_browser", "user_agent"]

CHROMIUM_VARIABLE: Final = "OMNIOPS_CHROMIUM"

_NAMES: Final = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome", "chrome")
_PLACES: Final = (
    "/usr/lib/chromium/chromium",
    "/usr/lib/chromium-browser/chromium-browser",
    "/opt/google/chrome/chrome",
    "/snap/bin/chromium",
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
    "/Applications/Chromium.app/Contents/MacOS/Chromium",
)
# What Playwright itself downloads, where somebody let it.
_DOWNLOADED: Final = (
    "chromium-*/chrome-linux*/chrome",
    "chromium-*/chrome-mac*/Chromium.app/Contents/MacOS/Chromium",
)

# What Chromium needs of our environment; the rest has passwords in it.
_ENVIRONMENT: Final = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "TZ", "USER", "XDG_RUNTIME_DIR", "FONTCONFIG_PATH")

# Playwright's own options stand beside these: no background networking, no component updates, no sync.
_FLAGS: Final = (
    # Loopback goes through the proxy too: by default it would be reached directly.
    "--proxy-bypass-list=<-loopback>",
    # Names are the proxy's business; nothing is resolved here, so nothing is resolved twice.
    "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1",
    "--dns-prefetch-disable",
    # What would go out by UDP, past any proxy.
    "--disable-quic",
    "--webrtc-ip-handling-policy=disable_non_proxied_udp",
    "--force-webrtc-ip-handling-policy=disable_non_proxied_udp",  # its name in older versions
    # Only text is kept, so nothing is loaded that is none.
    "--blink-settings=imagesEnabled=false",
    "--disable-remote-fonts",
    "--autoplay-policy=user-gesture-required",
    "--deny-permission-prompts",
    "--no-pings",
)


def find_chromium() -> str | None:
    """The path of a Chromium or Chrome: `OMNIOPS_CHROMIUM`, else one on PATH or at a usual place; None without."""
    named = Settings.from_environment().chromium
    if named:
        return shutil.which(named)
    for name in _NAMES:
        if found := shutil.which(name):
            return found
    for place in _PLACES:
        if os.access(place, os.X_OK):
            return place
    downloads = Path(os.environ.get("PLAYWRIGHT_BROWSERS_PATH") or Path.home() / ".cache" / "ms-playwright")
    found_there = sorted(
        path for pattern in _DOWNLOADED for path in downloads.glob(pattern) if os.access(path, os.X_OK)
    )
    return str(found_there[-1]) if found_there else None


def missing_browser() -> str | None:
    """What is missing for rendering, as one sentence that says what to do; None where it can be done."""
    if importlib.util.find_spec("playwright") is None:
        return "the package playwright is not installed: pip install '.[browser]' installs it, or use render=http"
    if find_chromium() is None:
        named = Settings.from_environment().chromium
        if named:
            return f"{CHROMIUM_VARIABLE} names {named!r}, which is no program: correct it, or use render=http"
        return (
            "no Chromium or Chrome was found on this machine: install one (for example apt-get install chromium), "
            f"name it in {CHROMIUM_VARIABLE}, or use render=http"
        )
    return None


def launch_options(executable: str, proxy_port: int, *, heap_megabytes: int) -> dict[str, object]:
    """The arguments of Playwright's `launch`.

    Args:
        executable: of `find_chromium`.
        proxy_port: on loopback; for what the browser does by itself. Pages have proxies of their own.
        heap_megabytes: for the scripts of one page.
    """
    return {
        "executable_path": executable,
        "headless": True,
        # Chromium refuses to start its sandbox for root; everybody else has it.
        "chromium_sandbox": os.geteuid() != 0,
        "args": [
            f"--proxy-server=http://127.0.0.1:{proxy_port}",
            f"--js-flags=--max-old-space-size={heap_megabytes}",
            *_FLAGS,
        ],
        # Playwright lets popups through; here nobody looks at them.
        "ignore_default_args": ["--disable-popup-blocking"],
        "env": {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ},
        # Whoever runs the crawl decides when it ends.
        "handle_sigint": False,
        "handle_sigterm": False,
        "handle_sighup": False,
    }


def user_agent(browser_version: str, bot: str) -> str:
    """Who asks: a Chromium, as sites look for it, and our own name in it.

    Args:
        browser_version: "156.0.8078.108".
        bot: "OmniOpsBot/0.1 (+https://…)".
    """
    major = browser_version.split(".", 1)[0]
    named = bot.replace(" (", "; ").rstrip(")")
    return (
        f"Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko; compatible; {named}) "
        f"Chrome/{major}.0.0.0 Safari/537.36"
    )
