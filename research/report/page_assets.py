"""The page's looks, and the script that sorts and filters its table of runs."""

CSS = """
:root { color-scheme: light dark; --ink: #1b1b1b; --paper: #fff; --soft: #f5f5f5; --line: #ddd;
        --dim: #595959; --warn: #fff4e5; --mark: #b34700; --link: #0059a8; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8e8e8; --paper: #161616; --soft: #242424; --line: #444; --dim: #b0b0b0;
          --warn: #2b2117; --mark: #e69f00; --link: #7cc0ff; } }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
       margin: 0 auto; max-width: 66rem; padding: 1.5rem; }
h1 { font-size: 1.1rem; font-weight: 600; color: var(--dim); margin: 0 0 .6rem;
     overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 2.2rem 0 .5rem; border-bottom: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1rem 0 .3rem; }
p { max-width: 48rem; overflow-wrap: anywhere; }
a { color: var(--link); }
.lead { font-size: 1.15rem; margin: .3rem 0; }
.lead.first { font-size: 1.5rem; line-height: 1.3; font-weight: 600; }
.warn { background: var(--warn); border-left: 4px solid var(--mark); padding: .2rem .9rem .5rem;
        margin: 1rem 0; font-size: .9rem; }
.warn ul { margin: 0; padding-left: 1.2rem; overflow-wrap: anywhere; }
.scroll { overflow-x: auto; margin: .5rem 0; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .85rem; }
th, td { padding: .2rem .6rem; text-align: right; border-bottom: 1px solid var(--line);
         white-space: nowrap; font-weight: 400; }
thead th { border-bottom: 2px solid var(--dim); font-weight: 600; vertical-align: bottom;
           white-space: normal; }
td.text, th.text { text-align: left; }
td span { display: block; }
td.text:last-child { white-space: normal; overflow-wrap: anywhere; min-width: 9rem; }
.sortable td.text { white-space: normal; overflow-wrap: anywhere; min-width: 4rem; }
.sortable td:first-child { min-width: 7rem; }
td.wide { white-space: normal; text-align: left; }
th[aria-sort] button::after { content: " \\2195"; color: var(--dim); }
th[aria-sort=ascending] button::after { content: " \\2191"; }
th[aria-sort=descending] button::after { content: " \\2193"; }
th button { all: unset; cursor: pointer; }
th button:focus-visible, .scroll:focus-visible, .drawn:focus-visible {
  outline: 2px solid var(--link); }
.tools { display: flex; flex-wrap: wrap; gap: 1rem; align-items: center; font-size: .9rem; }
.tools input { font: inherit; padding: .1rem .4rem; }
figure { margin: 1rem 0; }
figcaption { font-size: .9rem; color: var(--dim); max-width: 48rem; margin-top: .3rem; }
.drawn, .chart { background: #fff; color: #1b1b1b; padding: .3rem; overflow-x: auto; }
@media (prefers-color-scheme: dark) { .drawn, .chart { filter: invert(.91) hue-rotate(180deg); } }
svg, img { max-width: 100%; height: auto; display: block; margin: 0 auto; }
.chart { max-width: 46rem; margin: 0 auto; }
.chart .vega-embed { display: block; padding: 0; }
.chart .told { display: block; white-space: pre-wrap; font-size: .9rem; padding: .2rem .6rem; }
.chart svg { margin: 0; }
.chart form label, .vega-bind { font-size: .95rem; }
.chart input[type=range] { width: 20rem; max-width: 60vw; vertical-align: middle; }
.chart input[type=range] ~ * { display: none; }
summary { cursor: pointer; margin: .5rem 0; }
code, pre { background: var(--soft); font-size: .85rem; }
pre { padding: .6rem; overflow-x: auto; white-space: pre-wrap; overflow-wrap: anywhere; }
@media (max-width: 40rem) {
  .drawn.wide > * { width: 42rem; max-width: none; margin: 0; }
  tbody th { white-space: normal; min-width: 6.5rem; }
  body { padding: .8rem; } .lead.first { font-size: 1.25rem; }
  .chart input[type=range] { display: block; width: 80vw; max-width: 80vw; } }
@page { margin: 14mm; }
@media print {
  :root { --ink: #000; --paper: #fff; --soft: #fff; --line: #ccc; --dim: #333; --warn: #fff; }
  body { max-width: none; font-size: 10pt; padding: 0; }
  .scroll { overflow: visible; } .drawn { filter: none; } .tools, .explore { display: none; }
  table { font-size: 7pt; } th, td { padding: .1rem .25rem; }
  figure, tr, .warn { break-inside: avoid; } h2, h3 { break-after: avoid; } }
"""
# Without it the table stands as it is: the controls are made here.
SCRIPT = """
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0], heads = [...table.tHead.rows[0].cells];
  const key = (row, i) => {
    const cell = row.cells[i];
    return "value" in cell.dataset ? Number(cell.dataset.value) : cell.textContent;
  };
  const compare = (a, b) => typeof a === typeof b
    ? (typeof a === "number" ? a - b : a.localeCompare(b))
    : (typeof a === "number" ? -1 : 1);
  heads.forEach((head, i) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = head.textContent;
    head.replaceChildren(button);
    head.setAttribute("aria-sort", "none");
    button.addEventListener("click", () => {
      const sign = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
      heads.forEach((other) => other.setAttribute("aria-sort", "none"));
      head.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
      body.append(...[...body.rows].sort((a, b) => sign * compare(key(a, i), key(b, i))));
    });
  });
  const label = document.createElement("label"), input = document.createElement("input");
  input.type = "search";
  label.append("Filter: ", input);
  input.addEventListener("input", () => {
    const words = input.value.toLowerCase().split(/\\s+/);
    for (const row of body.rows) {
      const text = row.textContent.toLowerCase();
      row.hidden = !words.every((word) => text.includes(word));
    }
  });
  table.parentElement.previousElementSibling.prepend(label);
}
"""
