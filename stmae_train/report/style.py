"""The style sheet of training pages: one column of cards, calm colours, light and dark."""

from __future__ import annotations

__all__ = ["STYLE"]

STYLE = """
:root {
  --paper: #f6f7f5; --card: #ffffff; --ink: #1d2a30; --soft: #5c6b73; --faint: #8b989f; --line: #e3e8e6; --rail: #eef1ef;
  --main: #2b7a78; --main-soft: #d9ebe8; --good: #1f7a52; --bad: #b4493a; --warn: #b07a1e; --code: #f1f4f2;
  --mono: ui-monospace, "SF Mono", "Cascadia Mono", "DejaVu Sans Mono", Menlo, monospace;
}
@media (prefers-color-scheme: dark) {
  :root { --paper: #12181b; --card: #1a2226; --ink: #e4eaec; --soft: #a3b1b8; --faint: #7b8990; --line: #2a343a; --rail: #253036;
    --main: #5db3ad; --main-soft: #1f3a3b; --good: #6cc79b; --bad: #e28a7c; --warn: #d9ab5c; --code: #222c31; }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 15px/1.55 system-ui, -apple-system, "Segoe UI", "Inter", "Noto Sans", "DejaVu Sans", sans-serif;
  font-variant-numeric: tabular-nums; }
header, main, footer { max-width: 1120px; margin: 0 auto; padding: 0 28px; }
header { padding-top: 52px; padding-bottom: 24px; }
h1 { margin: 0; font-size: 38px; line-height: 1.15; letter-spacing: -0.02em; font-weight: 680; overflow-wrap: anywhere; }
h2 { margin: 0 0 4px; font-size: 20px; letter-spacing: -0.01em; font-weight: 640; }
h3 { margin: 26px 0 8px; font-size: 15px; font-weight: 640; }
.kind { margin: 0 0 6px; font-size: 12px; font-weight: 650; letter-spacing: 0.12em; text-transform: uppercase; color: var(--main); }
.sub { margin: 10px 0 0; color: var(--soft); font-size: 17px; max-width: 72ch; overflow-wrap: anywhere; }
.lead { margin: 0 0 18px; color: var(--soft); max-width: 96ch; }
.alert { margin: 16px 0 0; padding: 10px 14px; border-left: 3px solid var(--warn); background: var(--card); border-radius: 0 8px 8px 0; max-width: 96ch; }
section { margin: 0 0 20px; padding: 26px 28px 28px; background: var(--card); border: 1px solid var(--line); border-radius: 14px; }
section.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); padding: 0; overflow: hidden; }
.tile { padding: 20px 22px 18px; box-shadow: -1px 0 0 var(--line), 0 -1px 0 var(--line); }
.tile b { display: block; font-size: 26px; line-height: 1.2; font-weight: 640; letter-spacing: -0.015em; }
.tile span { display: block; font-weight: 560; }
.tile small { display: block; color: var(--faint); font-size: 12.5px; line-height: 1.4; margin-top: 2px; }
.wide { overflow-x: auto; }
table { width: 100%; border-collapse: collapse; font-size: 14px; }
th, td { padding: 9px 14px 9px 0; text-align: right; border-bottom: 1px solid var(--line); vertical-align: baseline; }
thead th { color: var(--faint); font-size: 12px; font-weight: 600; vertical-align: bottom; }
thead th small { display: block; font-weight: 400; }
th:first-child, .word { text-align: left; }
tbody th { font-weight: 560; white-space: nowrap; }
tbody tr:last-child > * { border-bottom: 0; }
th:last-child, td:last-child { padding-right: 0; }
td small, tbody th small { color: var(--faint); font-size: 12.5px; font-weight: 400; }
tbody th small { display: block; }
.big td { padding-top: 13px; padding-bottom: 13px; white-space: nowrap; }
.big tbody th { font-size: 15px; }
.score { font-size: 17px; font-weight: 600; letter-spacing: -0.01em; }
.score.best { color: var(--good); }
.spread { color: var(--soft); }
.delta { display: block; color: var(--soft); font-size: 13px; }
.delta b { font-weight: 620; } .better { color: var(--good); } .worse { color: var(--bad); }
.none { color: var(--warn); font-weight: 600; font-size: 16px; } .muted { color: var(--faint); }
.swatch { display: inline-block; width: 10px; height: 10px; border-radius: 3px; margin-right: 9px; }
.notes { margin: 16px 0 0; padding: 0; list-style: none; color: var(--soft); font-size: 13px; max-width: 92ch; }
.notes li { margin: 5px 0; }
.chart { margin: 0 0 8px; min-width: 0; }
.chart svg { display: block; width: 100%; max-width: 860px; height: auto; margin: 6px 0 0; overflow: visible; }
.chart figcaption b { display: block; font-weight: 600; }
.chart figcaption span { color: var(--faint); font-size: 13px; }
.two { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 420px), 1fr)); gap: 18px 40px; }
.two > * { min-width: 0; }
.pictures { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 480px), 1fr)); gap: 20px; }
.pictures figure { margin: 0; min-width: 0; }
.pictures img { display: block; width: 100%; height: auto; border-radius: 8px; background: var(--rail); image-rendering: pixelated; }
.pictures figcaption { margin-top: 7px; font-size: 13px; color: var(--soft); }
.track { display: block; height: 8px; border-radius: 4px; background: var(--rail); overflow: hidden; min-width: 120px; }
.track i { display: block; height: 100%; border-radius: 4px; background: var(--main); }
.ok { color: var(--good); font-weight: 600; } .bad { color: var(--bad); font-weight: 600; }
.pill { display: inline-block; padding: 1px 10px; border-radius: 20px; background: var(--rail); font-size: 12.5px; font-weight: 560; }
.pill.better { background: var(--main-soft); }
.narrow { max-width: 620px; }
.tight td, .tight th { white-space: nowrap; }
.pairs { margin: 0; font-size: 14px; }
.pairs div { display: grid; grid-template-columns: 170px minmax(0, 1fr); gap: 14px; padding: 6px 0; border-bottom: 1px solid var(--line); }
.pairs div:last-child { border-bottom: 0; }
.pairs dt { color: var(--soft); } .pairs dd { margin: 0; overflow-wrap: anywhere; }
details { margin-top: 18px; } summary { cursor: pointer; color: var(--main); font-weight: 560; }
details[open] summary { margin-bottom: 10px; }
code { font-family: var(--mono); font-size: 0.88em; background: var(--code); border-radius: 5px; padding: 1px 5px; overflow-wrap: anywhere; }
table code { background: none; padding: 0; }
pre { margin: 0; padding: 16px 18px; background: var(--code); border-radius: 10px; overflow-x: auto; font: 13px/1.6 var(--mono); }
footer { padding-top: 8px; padding-bottom: 44px; color: var(--faint); font-size: 12.5px; overflow-wrap: anywhere; }
@media (max-width: 640px) { header, main, footer { padding-left: 14px; padding-right: 14px; } section { padding: 20px 16px; } h1 { font-size: 30px; } }
@media print { body { background: none; } section { break-inside: avoid; border-color: #ccc; } }
"""
