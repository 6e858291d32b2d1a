// ---- which metrics share a chart, and the sections that show the charts.

const runsWith = (name) => report.runs.filter((run) => name in run.curves);

// Curves of one metric for each run that has logged it.
function curvesOf(name, kind, isThin = false) {
  return runsWith(name).map((run) => {
    const label = [report.runs.length > 1 ? run.name : null, kind].filter(Boolean).join(", ") || run.name;
    return { label, run: run.name, ...run.curves[name], isThin };
  });
}

// Held-out and training values of a metric in one chart, with its baselines.
function heldOutChart(metric) {
  return {
    title: metricTitle(metric),
    curves: [...curvesOf(`val/${metric}`, "validation"), ...curvesOf(`train/${metric}`, "training", true)],
    constants: baselinesOf(runsWith(`val/${metric}`), metric),
  };
}

// A speech metric of the samples and of the real speech at the same prompts, which does not change over training.
function speechChart(metric) {
  const real = new Map();
  for (const run of runsWith(`samples/real/${metric}`)) {
    const value = run.curves[`samples/real/${metric}`].values.at(-1);
    if (value !== null && !real.has(value)) real.set(value, run.name);
  }
  const constants = [...real].map(([value, run]) =>
    real.size === 1 ? { label: "real speech", value, isTarget: true } : { label: `real speech, ${run}`, run, value, isTarget: true },
  );
  return { title: metricTitle(metric), curves: curvesOf(`samples/${metric}`, "babble"), constants };
}

function plainChart(name) {
  const [part, ...rest] = name.split("/");
  const title = part === "train" ? metricTitle(rest.join("/")) : name.replaceAll("_", " ").replaceAll("/", ", ");
  return { title, curves: curvesOf(name, null), constants: [] };
}

// Charts are created when they are first shown: a training may log a hundred metrics.
function chartGroup(title, specs) {
  if (!specs.length) return null;
  const group = element("details", {}, element("summary", {}, title));
  group.addEventListener("toggle", () => group.append(chartGrid(specs)), { once: true });
  return group;
}

const chartGrid = (specs) => element("div", { class: "charts" }, ...specs.map(drawChart));

const LOGGED = [...new Set(report.runs.flatMap((run) => Object.keys(run.curves)))];
const under = (prefix) => LOGGED.filter((name) => name.startsWith(prefix));

function drawSpeech() {
  const metrics = under("samples/").filter((name) => !name.startsWith("samples/real/")).map((name) => name.replace("samples/", ""));
  if (!metrics.length && !report.progressions.length) return null;
  const note = "Means over the clips after the prompt, at each epoch with samples. Dashed: real speech at the same prompts.";
  const about = "Each panel is one field: its level in a frame (x) against its level in the next (y), as in the text of 2017. A field that keeps its level lies on the diagonal.";
  return section(
    "speech",
    "Babble and real speech",
    ...(metrics.length ? [element("p", { class: "note" }, note), chartGrid(metrics.map(speechChart))] : []),
    ...(report.progressions.length ? [element("h3", {}, "Progression plots"), element("p", { class: "note" }, about), pictures(report.progressions)] : []),
  );
}

function drawCurves() {
  const heldOut = under("val/").map((name) => name.replace("val/", ""));
  const others = LOGGED.filter((name) => !/^(val|samples|baseline)\//.test(name) && !["epoch", "train/stage"].includes(name) && !heldOut.includes(name.replace("train/", "")));
  if (!heldOut.length && !others.length) return null;
  const isMain = (name) => ["bits_per_frame", "error_levels", "train/loss", "train/lr", "train/frames_per_second"].includes(name);
  const isGroup = (metric) => /^(bits|error)\//.test(metric);
  const isLayer = (name) => /^(unfrozen|gradient_norm|weight_norm)\//.test(name);
  const main = [...heldOut.filter(isMain).sort().map(heldOutChart), ...others.filter(isMain).map(plainChart)];
  const rest = [
    ...heldOut.filter((metric) => !isMain(metric) && !isGroup(metric)).map(heldOutChart),
    ...others.filter((name) => !isMain(name) && !isLayer(name)).map(plainChart),
  ];
  return section(
    "curves",
    "Curves",
    element("p", { class: "note" }, "Over optimizer steps. Thick: held-out validation speech; thin: training batches; dashed: baselines on the same held-out speech. Drag to zoom, double-click to reset, click a name to hide its curve. Outliers may lie outside the y-axis."),
    chartGrid(main),
    chartGroup("By field group", heldOut.filter(isGroup).map(heldOutChart)),
    chartGroup("Layers: frozen and unfrozen", others.filter(isLayer).map(plainChart)),
    chartGroup("Other metrics", rest),
  );
}
