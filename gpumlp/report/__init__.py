"""HTML pages: a report on training runs, and a page on which to draw samples for a network.

>>> from gpumlp import MLP
>>> from gpumlp.report import drawing_page
>>> page = drawing_page(MLP([64, 16, 10], device="cpu"), (8, 8), title="Untrained")
>>> page.startswith("<!doctype html>")
True
"""

from __future__ import annotations

from .page import FILE, drawing_page, report_page, require_libraries, write_page

__all__ = ["FILE", "drawing_page", "report_page", "require_libraries", "write_page"]
