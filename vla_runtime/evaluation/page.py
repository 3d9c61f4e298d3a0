"""The look of every page that a command writes, and its parts: sections, tables, numbers.

A page is one file that needs neither network nor JavaScript. Texts that come from outside are escaped by whoever
puts them in.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

STYLE = """
:root { color-scheme: light dark; --page: #fafafa; --card: #fff; --line: #e2e2e5; --text: #1d1d20; --soft: #6b6b73;
  --good: #2f7d4f; --bad: #b3372f; --warn: #9a6700; --fill: #5b7fb5; --pale: #c5d3e8; }
@media (prefers-color-scheme: dark) { :root { --page: #161618; --card: #1e1e21; --line: #34343a; --text: #e6e6ea;
  --soft: #9a9aa4; --good: #6cc48f; --bad: #ef8079; --warn: #e0b04c; --fill: #7f9fd0; --pale: #3d4d68; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1080px; padding: 28px 24px 60px; background: var(--page); color: var(--text);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
h1 { font-size: 22px; margin: 0; } h2 { font-size: 16px; margin: 34px 0 10px; }
.soft { color: var(--soft); } .good { color: var(--good); } .bad { color: var(--bad); }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 16px 18px; }
.warn { border-left: 4px solid var(--warn); margin-top: 16px; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 12px; margin-top: 18px; }
.tile b { display: block; font-size: 26px; line-height: 1.25; font-weight: 600; font-variant-numeric: tabular-nums; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(400px, 1fr)); gap: 12px; }
.charts svg { width: 100%; max-width: 520px; height: auto; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th { text-align: left; font-weight: 500; color: var(--soft); font-size: 13px; }
th, td { padding: 5px 14px 5px 0; border-bottom: 1px solid var(--line); vertical-align: middle; }
tr:last-child td { border-bottom: 0; } td.num, th.num { text-align: right; white-space: nowrap; }
pre { margin: 8px 0 0; white-space: pre-wrap; overflow-wrap: anywhere;
  font: 13px/1.45 ui-monospace, Menlo, Consolas, monospace; }
summary { cursor: pointer; } details + details { margin-top: 10px; } .whole { white-space: nowrap; }
figure { margin: 0 0 16px; } figcaption { margin-bottom: 8px; }
figure img { display: block; width: 100%; border-radius: 6px; }
video { width: 100%; max-width: 640px; margin-top: 8px; }
svg text { fill: var(--soft); font-size: 12px; } svg .track { fill: var(--line); } svg .interval { fill: var(--pale); }
svg .mark, svg .bar { fill: var(--fill); } svg .seams { fill: var(--text); } svg .limits { fill: var(--bad); }
svg .held { fill: var(--warn); opacity: .7; } svg .chunks { fill: var(--fill); opacity: .45; }
svg .safety { fill: #8a5bd6; }
svg .line { fill: none; stroke: var(--fill); stroke-width: 2; }
svg .whisker { stroke: var(--fill); stroke-width: 6; opacity: .25; stroke-linecap: round; }
svg .axis { stroke: var(--soft); stroke-width: 1; opacity: .4; }
"""


def document(title: str, parts: Iterable[str]) -> str:
    """A whole page; parts are HTML, empty ones left out."""
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>\n<body>\n"
        + "\n".join(filter(None, parts))
        + "\n</body></html>\n"
    )


def section(title: str, body: str) -> str:
    """A heading and a card; body is HTML."""
    return f'<h2>{escape(title)}</h2><div class="card scroll">{body}</div>'


def table(lines: Sequence[Sequence[str]], heads: Sequence[str] = ()) -> str:
    """Cells are HTML; a head that begins with # is a column of numbers."""
    numbers = {i for i, head in enumerate(heads) if head.startswith("#")}

    def row(tag: str, cells: Sequence[str]) -> str:
        return "".join(f"<{tag}{' class=num' if i in numbers else ''}>{cell}</{tag}>" for i, cell in enumerate(cells))

    head = f"<tr>{row('th', [head.removeprefix('#') for head in heads])}</tr>" if heads else ""
    body = "".join(f"<tr>{row('td', line)}</tr>" for line in lines)
    return f"<table>{head}{body}</table>"


def number(value: float | None) -> str:
    """Three significant digits, never an exponent; a dash for what was not measured."""
    return "-" if value is None else f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
