"""The style sheet of a report: light and dark, on a screen, a phone and paper."""

STYLE = r"""
:root {
  --paper: #f6f7f9; --card: #fff; --ink: #16191d; --soft: #5b6470; --rule: #e2e6eb; --accent: #0b6bcb;
  --train: #7a8694; --good: #0a7a43; --good-back: #e3f5ea; --bad: #b3261e; --bad-back: #fbe9e7;
  --mono: ui-monospace, "SF Mono", "Cascadia Mono", Menlo, Consolas, monospace;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #101317; --card: #191d23; --ink: #e8ebef; --soft: #9aa4b1; --rule: #2c323a; --accent: #5aa9f5;
    --train: #7e8b9a; --good: #5fd394; --good-back: #14321f; --bad: #f28b82; --bad-back: #3b1c1a;
  }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
  font-variant-numeric: tabular-nums; -webkit-text-size-adjust: 100%; }
header, main, footer { max-width: 1120px; margin: 0 auto; padding: 0 24px; }
header { padding-top: 40px; }
h1 { margin: 0; font-size: 34px; line-height: 1.15; letter-spacing: -.02em; overflow-wrap: anywhere; }
h2 { margin: 0 0 4px; font-size: 20px; letter-spacing: -.01em; }
h3 { margin: 0 0 8px; font-size: 15px; }
p { margin: 0; }
.over { color: var(--accent); font-weight: 600; font-size: 13px; letter-spacing: .06em; text-transform: uppercase; }
.under { margin-top: 6px; color: var(--soft); overflow-wrap: anywhere; }
.note { color: var(--soft); font-size: 13.5px; margin-bottom: 12px; }
section { margin-top: 44px; }
footer { margin-top: 44px; padding-bottom: 40px; color: var(--soft); font-size: 13px; }
code { font-family: var(--mono); font-size: .92em; }

.cards { margin-top: 24px; display: grid; grid-template-columns: 2fr 1fr 1fr 1fr; gap: 14px; }
.card, .facts, .chart, .photo, .triple, .scroll, details { background: var(--card); border: 1px solid var(--rule);
  border-radius: 12px; }
.card { padding: 16px 18px; }
.card p { color: var(--soft); font-size: 13px; }
.card strong { display: block; font-size: 24px; line-height: 1.35; letter-spacing: -.02em; white-space: nowrap; }
.card:first-child strong { font-size: 34px; line-height: 1.2; }
.card em { font-style: normal; color: var(--soft); font-size: 13px; }
.card:first-child em { color: var(--good); font-weight: 600; font-size: 15px; }
.card.loss:first-child em { color: var(--bad); }
.badge { display: inline-block; margin-left: 10px; padding: 1px 9px; border-radius: 99px; background: var(--good-back);
  color: var(--good); font-weight: 600; font-size: 13px; white-space: nowrap; }
.badge.loss { background: var(--bad-back); color: var(--bad); }

.two { display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 18px; margin-top: 18px; }
.three { display: grid; grid-template-columns: repeat(3, minmax(0, 1fr)); gap: 8px; }
figure { margin: 0; }
.photo, .chart { padding: 14px 16px 16px; }
figcaption { display: flex; flex-wrap: wrap; justify-content: space-between; gap: 2px 16px; margin-bottom: 10px; }
figcaption b { overflow-wrap: anywhere; }
.slider { --at: 50%; position: relative; overflow: hidden; border-radius: 8px; background: var(--rule); }
.slider img { display: block; width: 100%; height: auto; }
.before { position: absolute; inset: 0; clip-path: inset(0 calc(100% - var(--at)) 0 0); }
.slider::after { content: ""; position: absolute; inset: 0 auto 0 var(--at); width: 2px; margin-left: -1px;
  background: #fff; box-shadow: 0 0 4px #0009; pointer-events: none; }
.slider::before { content: "\2194"; position: absolute; z-index: 1; left: var(--at); top: 50%; width: 34px;
  height: 34px; margin: -17px; border-radius: 50%; background: #fff; color: #16191d;
  font: 18px/33px system-ui, sans-serif; text-align: center; box-shadow: 0 1px 5px #0007; pointer-events: none; }
.slider input { position: absolute; z-index: 2; inset: 0; width: 100%; height: 100%; margin: 0; opacity: 0;
  cursor: ew-resize; touch-action: pan-y; }
.slider:focus-within { outline: 3px solid var(--accent); outline-offset: 2px; }
.place { position: absolute; border: 2px solid #ffd33d; border-radius: 3px; box-shadow: 0 0 0 1px #0007; }
.tag { position: absolute; top: 10px; left: 10px; padding: 1px 9px; border-radius: 99px; background: #000a; color: #fff;
  font-size: 12.5px; }
.tag + .tag { left: auto; right: 10px; }
.photo .note { margin: 12px 0 8px; }
.photo .triple { border: 0; background: none; padding: 0; }
.triple { padding: 12px 14px 10px; }
.triple p { margin-bottom: 8px; }
.three img { display: block; width: 100%; height: auto; border-radius: 6px; image-rendering: pixelated; }
.three small { display: block; margin-top: 4px; color: var(--soft); font-size: 12.5px; line-height: 1.35; }
.three b { display: block; font-weight: 600; }
.tiles { display: grid; gap: 18px; grid-template-columns: repeat(3, minmax(0, 1fr)); }

.chart svg { display: block; width: 100%; height: auto; overflow: visible; }
.tick { font: 12px system-ui, sans-serif; fill: var(--soft); }
.end { text-anchor: end; }
.mid { text-anchor: middle; }
.grid { stroke: var(--rule); }
.line, .raw { fill: none; stroke: var(--train); stroke-width: 2.2; stroke-linejoin: round; }
.raw { stroke-width: 1; opacity: .45; }
.line.val { stroke: var(--accent); }
.line.input { stroke: var(--soft); stroke-width: 1.4; stroke-dasharray: 5 4; }
circle.val { fill: var(--accent); }
.key { color: var(--soft); font-size: 13px; white-space: nowrap; }
.key i { display: inline-block; width: 16px; margin-right: 6px; vertical-align: middle;
  border-top: 3px solid var(--train); }
.key.val i { border-color: var(--accent); }
.key.input i { border-top: 2px dashed var(--soft); }
.chart figcaption { justify-content: flex-start; }
.chart figcaption b { margin-right: auto; }

.scroll { overflow: auto; max-height: 640px; }
table { width: 100%; border-collapse: collapse; }
th { position: sticky; top: 0; background: var(--card); box-shadow: inset 0 -1px var(--rule); padding: 0; }
th button { all: unset; box-sizing: border-box; width: 100%; padding: 10px 16px; color: var(--soft); font-weight: 600;
  font-size: 13px; text-align: right; cursor: pointer; white-space: nowrap; }
th button:focus-visible { outline: 2px solid var(--accent); outline-offset: -3px; }
th button::after { content: " \2195"; opacity: .4; }
th[aria-sort] button { color: var(--ink); }
th[aria-sort=descending] button::after { content: " \2193"; opacity: 1; }
th[aria-sort=ascending] button::after { content: " \2191"; opacity: 1; }
td { padding: 8px 16px; border-bottom: 1px solid var(--rule); text-align: right; white-space: nowrap; }
tr:last-child td { border-bottom: 0; }
th:first-child button, td:first-child { text-align: left; }
td:first-child { overflow-wrap: anywhere; white-space: normal; min-width: 120px; }
tbody tr:hover td { background: var(--paper); }

.columns { display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 18px; }
.facts { padding: 16px 18px; }
dl { display: grid; grid-template-columns: minmax(90px, max-content) minmax(0, 1fr); gap: 5px 18px; margin: 0;
  font-size: 14px; }
dt { color: var(--soft); overflow-wrap: anywhere; }
dd { margin: 0; overflow-wrap: anywhere; }
.settings dl { font-family: var(--mono); font-size: 13px; }
details { margin-top: 14px; padding: 12px 18px; }
details > .scroll, details > .facts { border: 0; border-radius: 0; padding: 12px 0 0; max-height: none; }
summary { cursor: pointer; font-weight: 600; }

@media (max-width: 860px) {
  header, main, footer { padding-left: 16px; padding-right: 16px; }
  header { padding-top: 24px; }
  h1 { font-size: 27px; }
  .cards { grid-template-columns: repeat(2, minmax(0, 1fr)); }
  .card:first-child { grid-column: 1 / -1; }
  .card:first-child strong { font-size: 29px; }
  .card:last-child { grid-column: 1 / -1; }
  .card { padding: 14px; }
  .card strong { font-size: 20px; }
  th button, td { padding-left: 9px; padding-right: 9px; }
  .two, .columns, .tiles { grid-template-columns: minmax(0, 1fr); }
  .tick { font-size: 17px; }
  .chart svg { margin: 4px 0; }
}
@media print {
  :root { --paper: #fff; --card: #fff; --ink: #000; --soft: #444; --rule: #ccc; --accent: #0b6bcb; }
  body { font-size: 11px; }
  section { margin-top: 20px; }
  .chart, .photo, .triple, .card, .facts, tr { break-inside: avoid; }
  .scroll { max-height: none; overflow: visible; }
  th button::after { content: ""; }
}
"""
