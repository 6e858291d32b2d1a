// ---- charts: curves over optimizer steps, with constants (baselines, real speech) as dashed lines.
// A chart is {title, curves: [{label, run, steps, values, isThin}], constants: [{label, value, isTarget}]}.

const charts = [];
const CHART_HEIGHT = 230;

// All charts show the same steps, whenever their metrics were logged; uPlot applies a drag to all of one sync key.
const lastStep = Math.max(0, ...report.runs.flatMap((run) => Object.values(run.curves).map(({ steps }) => steps.at(-1))));
const ALL_STEPS = { min: 0, max: lastStep };

function zoomTo({ min, max }) {
  for (const chart of charts) chart.setScale("x", { min, max });
}

// The y-range [low, high] for values: outliers, such as the first losses or a spike, do not flatten the rest.
// A constant is in range if the curves keep half of the height, or have none; the real voice's value, a target, always is.
function chooseRange(values, constants) {
  const sorted = values.filter(Number.isFinite).sort((a, b) => a - b);
  if (!sorted.length) return [0, 1];
  const quantile = (share) => sorted[Math.round(share * (sorted.length - 1))];
  const [q5, q95] = [quantile(0.05), quantile(0.95)];
  let [low, high] = [Math.max(sorted[0], 2 * q5 - q95), Math.min(sorted.at(-1), 2 * q95 - q5)];
  const height = high - low;
  for (const { value, isTarget } of constants) {
    const [lower, upper] = [Math.min(low, value), Math.max(high, value)];
    if (isTarget || !height || upper - lower <= 2 * height) [low, high] = [lower, upper];
  }
  const margin = (high - low) * 0.05 || Math.abs(high) * 0.05 || 1;
  return [low - margin, high + margin];
}

// The nearest point of a curve: metrics are not all logged at the same steps.
function nearestPoint(chart, series, n) {
  const values = chart.data[series];
  for (let away = 0; away < values.length; away++) {
    if (values[n - away] != null) return n - away;
    if (values[n + away] != null) return n + away;
  }
  return n;
}

// Vertical lines where an unfreezing stage begins. Runs that change stage at the same step share a line.
function markStages(chart, runs) {
  const { ctx: context, bbox: box } = chart;
  const marks = new Map();
  for (const run of report.runs.filter(({ name }) => runs.has(name))) {
    const { steps = [], values = [] } = run.curves["train/stage"] || {};
    values.forEach((stage, n) => {
      if (!n || stage === values[n - 1]) return;
      const mark = `stage ${stage}`;
      const key = `${mark} ${steps[n]}`;
      marks.set(key, { mark, step: steps[n], colour: marks.has(key) ? "--muted" : runColour(run.name) });
    });
  }
  context.save();
  context.font = `${11 * devicePixelRatio}px system-ui, sans-serif`;
  context.setLineDash([2 * devicePixelRatio, 3 * devicePixelRatio]);
  context.textAlign = "left";
  [...marks.values()].forEach(({ mark, step, colour }, n) => {
    const x = chart.valToPos(step, "x", true);
    if (x < box.left || x > box.left + box.width) return;
    context.strokeStyle = context.fillStyle = style(colour);
    context.beginPath();
    context.moveTo(x, box.top);
    context.lineTo(x, box.top + box.height);
    context.stroke();
    // Labels are staggered, because stages may begin close to each other.
    context.fillText(mark, x + 4 * devicePixelRatio, box.top + (12 + 13 * (n % 6)) * devicePixelRatio);
  });
  context.restore();
}

function drawChart(spec) {
  const host = element("div", {
    class: "chart",
    tabindex: 0,
    role: "group",
    "aria-label": `${spec.title}. Arrow keys read the values, plus and minus zoom, 0 shows all.`,
  });
  const reset = element("button", { type: "button", class: "reset", onclick: () => zoomTo(ALL_STEPS) }, "Reset zoom");
  reset.hidden = true;
  whenNear(host, () => {
    const chart = plotCurves(host, spec, reset);
    host.addEventListener("keydown", (event) => onChartKey(event, chart));
  });
  return element("figure", {}, element("figcaption", {}, element("b", {}, spec.title), reset), host);
}

function formatValue(value, largest) {
  if (value === null || value === undefined) return MISSING;
  return largest < 0.1 ? value.toLocaleString("en", { maximumSignificantDigits: 3 }) : number(value, largest >= 1000 ? 0 : largest >= 100 ? 1 : 3);
}

function plotCurves(host, { curves, constants }, reset) {
  // The first and last step are added, so that constants cross the whole chart.
  const [steps, , ...columns] = uPlot.join([[[0, lastStep], [null, null]], ...curves.map(({ steps, values }) => [steps, values])]);
  const data = [steps, ...columns, ...constants.map(({ value }) => steps.map(() => value))];
  const largest = Math.max(...[...columns.flat(), ...constants.map(({ value }) => value)].filter(Number.isFinite).map(Math.abs));
  // Without a cursor the legend shows the last values.
  const last = (series) => data[series].findLast((value) => value !== null && value !== undefined);
  const curveValue = (chart, value, series) => formatValue(value ?? last(series), largest);
  const constantValue = (chart, value, series) => {
    const constant = constants[series - 1 - curves.length].value;
    const { min, max } = chart.scales.y;
    return formatValue(constant, largest) + (constant > max ? " (above)" : constant < min ? " (below)" : "");
  };
  const range = (chart) => {
    const [first, last] = chart.series[0].idxs;
    const visible = curves.flatMap((_, n) => (chart.series[n + 1].show ? columns[n].slice(first, last + 1) : []));
    return chooseRange(visible, constants);
  };
  const axis = { stroke: () => style("--muted"), grid: { stroke: () => style("--line"), width: 1 }, ticks: { show: false }, font: "12px system-ui, sans-serif" };
  const runs = new Set(curves.map(({ run }) => run));
  const chart = new uPlot(
    {
      width: 300,
      height: CHART_HEIGHT,
      cursor: { sync: { key: "curves" }, dataIdx: nearestPoint, focus: { prox: 30 }, y: false, bind: { dblclick: () => () => zoomTo(ALL_STEPS) } },
      focus: { alpha: 0.35 },
      scales: { x: { time: false }, y: { range } },
      axes: [{ ...axis, size: 28 }, { ...axis, size: 56, values: (chart, ticks) => ticks.map((tick) => tick.toLocaleString("en", { maximumSignificantDigits: 6 })) }],
      legend: { markers: { width: (chart, n) => chart.series[n].width, stroke: (chart, n) => chart.series[n].stroke(chart, n), dash: (chart, n) => (chart.series[n].dash ? "dashed" : "solid") } },
      series: [
        { label: "step", value: (chart, value) => number(value ?? lastStep) },
        ...curves.map(({ label, run, steps, isThin }) => ({ label, stroke: () => style(runColour(run)), width: isThin ? 1 : 2.5, spanGaps: true, value: curveValue, points: { show: steps.length < 40, size: isThin ? 4 : 6 } })),
        ...constants.map(({ label, run, isTarget }, n) => ({ label, stroke: () => style(isTarget ? (run ? runColour(run) : "--ink") : "--baseline"), width: 2, dash: n ? [6, 4] : [2, 3], value: constantValue, points: { show: false } })),
      ],
      hooks: {
        draw: [(chart) => markStages(chart, runs)],
        setScale: [(chart, key) => key === "x" && (reset.hidden = chart.scales.x.min === ALL_STEPS.min && chart.scales.x.max === ALL_STEPS.max)],
      },
    },
    data,
    host,
  );
  makeLegendButtons(host);
  const shown = charts.length ? charts[0].scales.x : ALL_STEPS;
  chart.setScale("x", { min: shown.min, max: shown.max });
  charts.push(chart);
  new ResizeObserver(() => host.clientWidth && chart.setSize({ width: host.clientWidth, height: CHART_HEIGHT })).observe(host);
  return chart;
}

// A click on a name hides its curve; the keyboard can do that too.
function makeLegendButtons(host) {
  for (const label of host.querySelectorAll(".u-series:not(:first-child) th")) {
    label.setAttribute("tabindex", 0);
    label.setAttribute("role", "button");
    label.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" && event.key !== " ") return;
      event.preventDefault();
      event.stopPropagation();
      label.click();
    });
  }
}

function onChartKey(event, chart) {
  const steps = chart.data[0];
  const { min, max } = chart.scales.x;
  const zoom = (factor) => {
    const at = chart.cursor.idx == null ? (min + max) / 2 : steps[chart.cursor.idx];
    zoomTo({ min: Math.max(0, at - (at - min) * factor), max: Math.min(lastStep, at + (max - at) * factor) });
  };
  const move = (by) => {
    const n = Math.max(0, Math.min(steps.length - 1, (chart.cursor.idx ?? (by > 0 ? -1 : steps.length)) + by));
    chart.setCursor({ left: chart.valToPos(steps[n], "x"), top: 10 });
  };
  if (event.key === "ArrowLeft") move(-1);
  else if (event.key === "ArrowRight") move(1);
  else if (event.key === "+") zoom(0.5);
  else if (event.key === "-") zoom(2);
  else if (event.key === "0") zoomTo(ALL_STEPS);
  else return;
  event.preventDefault();
}
