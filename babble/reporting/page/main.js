// ---- the page

const page = element("main", {});
const sections = [drawListen(), drawSpeech(), drawRuns(), drawCurves(), drawEvaluations(), drawSweeps()].filter(Boolean);
const names = [...report.sweeps, ...report.runs].map(({ name }) => name).join(", ");
page.append(
  element(
    "header",
    {},
    element("p", { class: "brand" }, "babble"),
    element("h1", {}, names),
    element("p", { class: "note" }, `Written ${report.written}`),
    element("nav", { "aria-label": "Sections" }, ...sections.map(({ id, firstChild }) => element("a", { href: `#${id}` }, firstChild.textContent))),
  ),
  ...sections,
);
document.body.append(page, player, enlarged);

for (const clip of clips) whenNear(clip.slider, () => new ResizeObserver(() => clip.draw()).observe(clip.slider));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
  for (const clip of clips) clip.draw();
  for (const chart of charts) chart.redraw();
});
performance.mark("interactive");
