// ---- the Runs section: best metric of each run with the baselines, settings and facts.

// Runs on the same shards share their baselines; with different shards the label names them.
function baselinesOf(runs, metric) {
  const shards = (run) => run.settings["data.shards"];
  const areSame = new Set(runs.map(shards)).size === 1;
  const found = new Map();
  for (const run of runs) {
    for (const [name, values] of Object.entries(run.baselines)) {
      const label = areSame ? name : `${name}, ${shards(run)}`;
      if (typeof values[metric] === "number") found.set(label, { label, value: values[metric] });
    }
  }
  return [...found.values()];
}

function drawBars(monitor) {
  const metric = monitor.replace("val/", "");
  const runs = report.runs.filter((run) => run.monitor === monitor && run.best !== null);
  const bars = new Map(baselinesOf(runs, metric).map((baseline) => [baseline.label, { ...baseline, run: null }]));
  for (const run of runs) bars.set(run.name, { label: run.name, value: run.best, run: run.name });
  const sorted = [...bars.values()].sort((a, b) => b.value - a.value);
  const items = sorted.map(({ label, value, run }) => {
    const bar = element("span", { class: "bar" });
    bar.style.width = `${(100 * value) / sorted[0].value}%`;
    bar.style.background = run === null ? "var(--baseline)" : `var(${runColour(run)})`;
    return element(
      "li",
      { class: run === null ? "of-baseline" : null },
      element("span", { class: "bar-name" }, label),
      element("span", { class: "bar-track", "aria-hidden": "true" }, bar),
      element("span", { class: "bar-value" }, number(value, 2)),
    );
  });
  const title = element("figcaption", {}, element("b", {}, metricTitle(metric)), " on held-out speech, best of each run; lower is better");
  return element("figure", { class: "bars" }, title, element("ul", {}, ...items));
}

const RUN_FACTS = [
  ["recipe", (run) => run.recipe || MISSING],
  ["best metric", (run) => (run.best === null ? MISSING : `${number(run.best, 2)} ${metricTitle(run.monitor.replace("val/", "")).toLowerCase()}`)],
  ["weights", (run) => number(run.weights)],
  ["frames trained on", (run) => number(run.frames) + (run.hours ? ` (${number(run.hours, run.hours < 10 ? 1 : 0)} h)` : "")],
  ["steps", (run) => number(run.steps)],
  ["state", (run) => (run.is_finished ? "finished" : "not finished") + (run.starts > 1 ? `, ${run.starts} starts` : "")],
  ["started", (run) => (run.start ? run.start.time.slice(0, 16).replace("T", " ") : MISSING)],
  ["git revision", (run) => (run.start && run.start.git) || MISSING],
  ["machine", (run) => (run.start ? run.start.machine : MISSING)],
];

function drawRuns() {
  if (!report.runs.length) return null;
  const runs = report.runs;
  const keys = [...new Set(runs.flatMap((run) => Object.keys(run.settings)))];
  const differing = keys.filter((key) => new Set(runs.map((run) => run.settings[key])).size > 1 && key !== "recipe");
  const head = () => ["", ...runs.map((run) => named(run.name))];
  const setting = (key) => [key, ...runs.map((run) => run.settings[key] ?? MISSING)];
  const group = (text) => [element("th", { colspan: runs.length + 1, class: "group" }, text)];
  const rows = [
    ...(differing.length ? [group("Settings that differ"), ...differing.map(setting), group("Training")] : []),
    ...RUN_FACTS.map(([label, describe]) => [label, ...runs.map(describe)]),
  ];
  const monitors = [...new Set(runs.filter((run) => run.best !== null).map((run) => run.monitor))];
  const versions = runs.filter((run) => run.start).map((run) => {
    const all = Object.entries(run.start.versions).map(([name, version]) => `${name} ${version}`);
    return element("p", { class: "note" }, `${run.name}: Python ${run.start.python}, ${all.join(", ")}`);
  });
  return section(
    "runs",
    "Runs",
    ...monitors.map(drawBars),
    table(head(), rows, "Runs"),
    element("details", {}, element("summary", {}, "All settings"), table(head(), keys.map(setting), "Settings"), ...versions),
  );
}
