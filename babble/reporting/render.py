"""The report page: one HTML file with data, style and scripts inline, which needs no network.

    write_report([Path("runs/demo")], Path("report.html"))

1. `gather_report` collects the data.
2. `build_page` puts it as JSON into page/page.html, with the style, the scripts and uPlot, which plots the curves.
3. A Content-Security-Policy allows exactly these scripts, by their hashes, and forbids every request.
"""

import base64
import hashlib
import html
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from babble.files import write_bytes
from babble.reporting import SHOWN_EPOCHS
from babble.reporting.collect import gather_report

PAGE = Path(__file__).parent / "page"
# Joined in this order into one script: later files use what earlier ones define.
SCRIPTS = ("dom", "clip", "explorer", "listen", "runs", "charts", "curves", "results", "main")


def build_page(report: dict[str, Any]) -> str:
    """Return the HTML page for what `gather_report` returned."""
    names = [facts["name"] for facts in (*report["sweeps"], *report["runs"])]
    style = (PAGE / "uPlot.min.css").read_text(encoding="utf-8") + (PAGE / "page.css").read_text(encoding="utf-8")
    library = (PAGE / "uPlot.iife.min.js").read_text(encoding="utf-8")
    script = "".join((PAGE / f"{name}.js").read_text(encoding="utf-8") for name in SCRIPTS)
    parts = {
        "policy": f"default-src 'none'; script-src {_hash(library)} {_hash(script)}; style-src {_hash(style)}; "
        "img-src data:; media-src blob:; base-uri 'none'; form-action 'none'",
        "title": html.escape(f"babble: {', '.join(names)}"),
        "style": style,
        # Escaped, so that no text in the data can close the script element.
        "data": json.dumps(report, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c"),
        "library": library,
        "script": script,
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], (PAGE / "page.html").read_text(encoding="utf-8"))


def _hash(text: str) -> str:
    """Return a Content-Security-Policy's source expression for an inline script or style."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def write_report(
    paths: Iterable[Path], out: Path, epochs: int = SHOWN_EPOCHS, sources: Sequence[Path] = ()
) -> dict[str, Any]:
    """Write the page for runs and sweeps, whole or not at all, and return the data that it shows.

    Raises:
        FileNotFoundError, ValueError: as `gather_report`.
    """
    report = gather_report(paths, epochs, sources)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(out, build_page(report).encode())
    return report
