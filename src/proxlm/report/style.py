"""The report's style sheet."""

# Series colours are Okabe and Ito's, which the colour-blind can tell apart; orange and blue are the two ends of
# the tokens' scale for the same reason.
STYLE = """
:root {
  color-scheme: light dark;
  --ground: #ffffff; --card: #f6f7f9; --line: #d9dde3; --ink: #1b1f24; --soft: #59636e; --accent: #0b62a8;
  --above: 230 97 1; --below: 38 110 190;
  --c0: #0072b2; --c1: #d55e00; --c2: #009e73; --c3: #b0588c; --c4: #8a6d00; --c5: #56606b;
}
@media (prefers-color-scheme: dark) { :root:not([data-theme="light"]) {
  --ground: #14171b; --card: #1c2127; --line: #343b44; --ink: #e6e9ed; --soft: #9aa5b1; --accent: #6cb6f0;
  --c0: #56b4e9; --c1: #f08a3c; --c2: #2fc79b; --c3: #dd94bf; --c4: #e0c341; --c5: #a9b4c0;
} }
:root[data-theme="dark"] {
  color-scheme: dark;
  --ground: #14171b; --card: #1c2127; --line: #343b44; --ink: #e6e9ed; --soft: #9aa5b1; --accent: #6cb6f0;
  --c0: #56b4e9; --c1: #f08a3c; --c2: #2fc79b; --c3: #dd94bf; --c4: #e0c341; --c5: #a9b4c0;
}
:root[data-theme="light"] { color-scheme: light; }
* { box-sizing: border-box; }
body {
  margin: 0 auto; padding: 1.25rem clamp(0.75rem, 3vw, 2.5rem) 4rem; max-width: 90rem;
  background: var(--ground); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "Noto Sans CJK SC", sans-serif;
}
header { display: flex; gap: 1rem; align-items: baseline; justify-content: space-between; }
h1 { font-size: 1.5rem; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 2.5rem 0 0.75rem; padding-top: 0.75rem; border-top: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.5rem 0 0.5rem; }
h4 { font-size: 0.85rem; margin: 0 0 0.35rem; color: var(--soft); font-weight: 600; }
nav { display: flex; flex-wrap: wrap; gap: 0.25rem 1rem; margin: 0.75rem 0 1rem; font-size: 0.9rem; }
a { color: var(--accent); }
.note, small { color: var(--soft); font-size: 0.85rem; }
.note { margin: 0.4rem 0; overflow-wrap: anywhere; }
small { display: block; font-weight: 400; }
.tiles { display: grid; grid-template-columns: repeat(auto-fill, minmax(9.5rem, 1fr)); gap: 0.6rem; margin: 0; }
.tiles div, .card, figure { background: var(--card); border: 1px solid var(--line); border-radius: 8px; }
.tiles div { padding: 0.5rem 0.8rem; min-width: 0; }
.tiles dt { color: var(--soft); font-size: 0.8rem; }
.tiles dd { margin: 0; font-size: 1.05rem; font-weight: 600; overflow-wrap: anywhere; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: 0.4rem 0.9rem 0.4rem 0; text-align: right; vertical-align: top;
  border-bottom: 1px solid var(--line); }
th[scope="row"], th:first-child { text-align: left; max-width: 24rem; }
td small { white-space: nowrap; }
.whiskers { display: block; margin-top: 0.2rem; }
.whiskers line { stroke-width: 2; }
.whiskers .c0 { stroke: var(--c0); fill: var(--c0); } .whiskers .c1 { stroke: var(--c1); fill: var(--c1); }
.whiskers .c2 { stroke: var(--c2); fill: var(--c2); } .whiskers .c3 { stroke: var(--c3); fill: var(--c3); }
.whiskers .c4 { stroke: var(--c4); fill: var(--c4); } .whiskers .c5 { stroke: var(--c5); fill: var(--c5); }
.plots { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 24rem), 1fr)); gap: 0.75rem; }
figure { margin: 0; padding: 0.6rem 0.4rem 0.2rem; min-width: 0; }
figcaption { font-size: 0.9rem; font-weight: 600; padding: 0 0.5rem; overflow-wrap: anywhere; }
.plot { height: 15rem; }
.card { padding: 0.8rem 1rem; margin: 0 0 0.75rem; }
.text {
  white-space: pre-wrap; overflow-wrap: anywhere; max-height: 24rem; overflow-y: auto; tab-size: 4;
  font: 0.88rem/1.6 ui-monospace, SFMono-Regular, Menlo, Consolas, "Noto Sans Mono CJK SC", monospace;
}
.prompt { color: var(--soft); }
.sides { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 18rem), 1fr)); gap: 0.75rem 1.5rem; }
.side { border-top: 1px solid var(--line); margin-top: 0.6rem; padding-top: 0.6rem; min-width: 0; }
.badge, .facts { font-variant-numeric: tabular-nums; font-weight: 400; }
.badge { border: 1px solid var(--line); border-radius: 1em; padding: 0 0.5em; color: var(--ink); }
.controls { display: flex; flex-wrap: wrap; gap: 0.5rem 1.25rem; align-items: center; margin: 0 0 0.75rem; }
.controls label { display: inline-flex; gap: 0.5rem; align-items: center; font-size: 0.9rem; max-width: 100%; }
.buttons { display: flex; flex-wrap: wrap; gap: 0.25rem; }
button, select {
  font: inherit; font-size: 0.9rem; padding: 0.25rem 0.7rem; min-height: 2.2rem; cursor: pointer;
  color: var(--ink); background: var(--card); border: 1px solid var(--line); border-radius: 6px;
}
button[aria-pressed="true"] { background: var(--accent); border-color: var(--accent); color: var(--ground); }
input[type="range"] { accent-color: var(--accent); min-width: 6rem; max-width: 100%; }
.token { border-radius: 3px; padding: 0.12em 0; box-decoration-break: clone; -webkit-box-decoration-break: clone; }
.token:hover, .token.chosen { outline: 2px solid var(--ink); }
.mark { color: var(--soft); font-size: 0.85em; }
.legend { margin: 0 0 0.75rem; max-width: 34rem; }
.legend .scale { height: 0.9rem; border-radius: 4px; border: 1px solid var(--line); }
.legend .ticks {
  display: flex; justify-content: space-between; font-size: 0.8rem; font-variant-numeric: tabular-nums;
}
#tip {
  position: absolute; z-index: 9; pointer-events: none; background: var(--ground); color: var(--ink);
  border: 1px solid var(--soft); border-radius: 6px; padding: 0.4rem 0.6rem; font-size: 0.82rem;
  box-shadow: 0 4px 16px rgb(0 0 0 / 0.25); max-width: min(20rem, calc(100vw - 1rem));
}
#tip table { width: 100%; } #tip th, #tip td { border: 0; padding: 0 0.8rem 0 0; }
#tip .shown { font-weight: 700; }
#tip code { overflow-wrap: anywhere; }
pre { overflow-x: auto; font-size: 0.85rem; line-height: 1.45; }
[hidden] { display: none !important; }
@media (max-width: 40rem) { .whiskers { display: none; } }
@media print {
  nav, .controls, #theme { display: none; }
  figure, .card { break-inside: avoid; }
  .text { max-height: none; }
}
"""
