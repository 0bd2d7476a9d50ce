"""The style sheet of the page: one column of cards, calm colours, light and dark."""

from __future__ import annotations

__all__ = ["STYLE"]

STYLE = """
:root {
  --paper: #f6f7f5; --card: #ffffff; --ink: #1d2a30; --soft: #5c6b73; --faint: #8b989f; --line: #e3e8e6; --rail: #eef1ef;
  --main: #2b7a78; --main-soft: #d9ebe8; --dropped: #d8a03f; --failed: #c2604f; --code: #f1f4f2;
  --mono: ui-monospace, "SF Mono", "Cascadia Mono", "DejaVu Sans Mono", Menlo, monospace;
}
@media (prefers-color-scheme: dark) {
  :root { --paper: #12181b; --card: #1a2226; --ink: #e4eaec; --soft: #a3b1b8; --faint: #7b8990; --line: #2a343a; --rail: #253036;
    --main: #5db3ad; --main-soft: #1f3a3b; --dropped: #d9ab5c; --failed: #d97e6d; --code: #222c31; }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 15px/1.55 system-ui, -apple-system, "Segoe UI", "Inter", "Noto Sans", "DejaVu Sans", sans-serif;
  font-variant-numeric: tabular-nums; }
header, main, footer { max-width: 1120px; margin: 0 auto; padding: 0 28px; }
header { padding-top: 52px; padding-bottom: 22px; }
h1 { margin: 0; font-size: 38px; line-height: 1.15; letter-spacing: -0.02em; font-weight: 680; overflow-wrap: anywhere; }
h2 { margin: 0 0 4px; font-size: 20px; letter-spacing: -0.01em; font-weight: 640; }
h3 { margin: 26px 0 8px; font-size: 12px; font-weight: 650; letter-spacing: 0.06em; text-transform: uppercase; color: var(--soft); }
.kind { margin: 0 0 6px; font-size: 12px; font-weight: 650; letter-spacing: 0.12em; text-transform: uppercase; color: var(--main); }
.sub { margin: 8px 0 0; color: var(--soft); overflow-wrap: anywhere; }
.lead { margin: 0 0 18px; color: var(--soft); max-width: 92ch; }
.lead:last-child { margin-bottom: 0; }
.alert { margin: 16px 0 0; padding: 10px 14px; border-left: 3px solid var(--failed); background: var(--card); border-radius: 0 8px 8px 0; }
section { margin: 0 0 20px; padding: 26px 28px 28px; background: var(--card); border: 1px solid var(--line); border-radius: 14px; }
section.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(145px, 1fr)); gap: 0; padding: 0; overflow: hidden; }
.tile { padding: 20px 18px 18px 22px; box-shadow: -1px 0 0 var(--line), 0 -1px 0 var(--line); }
.tile b { display: block; white-space: nowrap; font-size: 22px; line-height: 1.2; font-weight: 640; letter-spacing: -0.015em; }
.tile span { display: block; font-weight: 560; }
.tile small { display: block; color: var(--faint); font-size: 12.5px; line-height: 1.4; margin-top: 2px; }
.stack { display: block; width: 100%; height: 22px; border-radius: 6px; overflow: hidden; background: var(--rail); }
.stack rect, .track rect { shape-rendering: crispEdges; }
.written, .bar { fill: var(--main); } .dropped, .bar.dropped { fill: var(--dropped); } .failed, .bar.failed { fill: var(--failed); }
.legend { margin: 10px 0 0; font-size: 13px; color: var(--soft); }
.legend span { margin-right: 18px; }
.legend span::before { content: ""; display: inline-block; width: 10px; height: 10px; border-radius: 3px; margin-right: 7px; }
.legend .written::before { background: var(--main); } .legend .dropped::before { background: var(--dropped); } .legend .failed::before { background: var(--failed); }
.line { display: grid; grid-template-columns: minmax(0, 370px) minmax(60px, 1fr) 120px; gap: 16px; align-items: center; padding: 4px 0; font-size: 14px; }
.two .line { grid-template-columns: minmax(0, 1fr) minmax(40px, 110px) 64px; gap: 12px; }
.line .name { overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
.line .name small { color: var(--faint); margin-left: 8px; font-size: 12.5px; }
.line .count { text-align: right; white-space: nowrap; }
.line .count small { display: inline-block; width: 56px; color: var(--faint); font-size: 12.5px; }
.track { width: 100%; height: 9px; border-radius: 5px; display: block; overflow: hidden; }
.rail { fill: var(--rail); }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(290px, 1fr)); gap: 26px 34px; }
.charts.one { grid-template-columns: minmax(0, 400px); }
.chart { margin: 0; min-width: 0; }
.chart figcaption b { display: block; font-weight: 600; overflow-wrap: anywhere; }
.chart figcaption span { color: var(--faint); font-size: 12.5px; }
.chart svg { display: block; width: 100%; height: auto; margin-top: 4px; overflow: visible; }
.chart .bar:hover { fill: var(--ink); }
.grid { stroke: var(--line); stroke-width: 1; } .axis { stroke: var(--faint); stroke-width: 1; }
.mark { fill: var(--faint); font-size: 10px; }
.wide { overflow-x: auto; }
table { width: 100%; border-collapse: collapse; font-size: 14px; }
th, td { padding: 8px 12px 8px 0; text-align: right; border-bottom: 1px solid var(--line); vertical-align: baseline; }
thead th { color: var(--faint); font-size: 12px; font-weight: 600; white-space: nowrap; }
th:first-child, td.word { text-align: left; }
tbody th { font-weight: 560; }
tbody tr:last-child > * { border-bottom: 0; }
th:last-child, td:last-child { padding-right: 0; }
/* A word column's head stands over its words. */
section:has(.level) thead th, .small thead th { text-align: left; }
section:has(.level) tbody td:not(.word), .small tbody td:not(.word) { text-align: left; }
.small { font-size: 12.5px; }
.level { display: inline-block; padding: 1px 9px; border-radius: 20px; background: var(--main-soft); font-size: 12.5px; font-weight: 560; }
.pictures { display: grid; grid-template-columns: repeat(auto-fill, minmax(158px, 1fr)); gap: 18px 16px; }
.pictures figure { margin: 0; min-width: 0; }
.pictures img, .blank { display: block; width: 100%; aspect-ratio: 4 / 3; object-fit: cover; border-radius: 9px; background: var(--rail); }
.blank { display: grid; place-items: center; color: var(--faint); font-size: 13px; }
.pictures figcaption { margin-top: 7px; font-size: 13px; line-height: 1.4; }
.pictures b, .pictures span, .pictures code { display: block; overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
.pictures b { font-weight: 600; } .pictures span { color: var(--soft); }
.pictures code { background: none; padding: 0; color: var(--faint); font-size: 11px; }
.tags { margin: 0; }
.tags span { display: inline-block; max-width: 100%; margin: 0 6px 7px 0; padding: 2px 11px; border-radius: 20px; background: var(--main-soft); font-size: 13.5px; overflow-wrap: anywhere; }
.tags small { margin-left: 7px; color: var(--soft); }
.groups { display: grid; grid-template-columns: repeat(auto-fill, minmax(300px, 1fr)); gap: 14px; }
.group { border: 1px solid var(--line); border-radius: 10px; padding: 12px 16px; min-width: 0; }
.group p { display: flex; justify-content: space-between; margin: 0 0 6px; }
.group ul { margin: 0; padding: 0; list-style: none; font-size: 12.5px; color: var(--soft); }
.group li { overflow-wrap: anywhere; padding: 1px 0; }
.group .keeper::after { content: "kept"; margin-left: 8px; color: var(--main); font-weight: 600; }
.two { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 400px), 1fr)); gap: 0 44px; }
.two > div { min-width: 0; }
.pairs { margin: 0; font-size: 14px; }
.pairs div { display: grid; grid-template-columns: 150px minmax(0, 1fr); gap: 14px; padding: 5px 0; border-bottom: 1px solid var(--line); }
.pairs div:last-child { border-bottom: 0; }
.pairs dd.hash { font-family: var(--mono); font-size: 12px; line-height: 1.75; }
.pairs dt { color: var(--soft); } .pairs dd { margin: 0; overflow-wrap: anywhere; }
details { margin-top: 18px; } summary { cursor: pointer; color: var(--main); font-weight: 560; }
details[open] summary { margin-bottom: 10px; }
code { font-family: var(--mono); font-size: 0.88em; background: var(--code); border-radius: 5px; padding: 1px 5px; overflow-wrap: anywhere; }
table code, .group code { background: none; padding: 0; }
pre { margin: 0 0 18px; padding: 16px 18px; background: var(--code); border-radius: 10px; overflow-x: auto; font-size: 12.5px; line-height: 1.65; }
pre code { background: none; padding: 0; font-size: 1em; overflow-wrap: normal; }
footer { padding-top: 8px; padding-bottom: 44px; color: var(--faint); font-size: 12.5px; overflow-wrap: anywhere; }
footer code { background: none; padding: 0; }
@media (max-width: 640px) { header, main, footer { padding-left: 14px; padding-right: 14px; } section { padding: 20px 16px; }
  .line { grid-template-columns: minmax(0, 1fr) 60px 96px; } .line .name small { display: none; } }
@media print { body { background: none; } section { break-inside: avoid; border-color: #ccc; } }
"""
