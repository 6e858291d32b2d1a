// ---- evaluations and sweeps: tables, texts and pictures that other commands left in the folders.

function drawEvaluations() {
  if (!report.evaluations.length) return null;
  const parts = report.evaluations.flatMap(({ title, rows: found, statistics }) => {
    const columns = [...new Set(found.flatMap((row) => Object.keys(row.metrics)))];
    const isError = (name) => name.startsWith("error");
    const groups = [columns.filter((name) => !isError(name)), columns.filter(isError)];
    const tables = groups.filter((names) => names.length).map((names) => {
      const cell = (row, name) => {
        const interval = row.intervals[name];
        const bounds = interval ? element("small", {}, ` ${number(interval[0], 2)}${MISSING}${number(interval[1], 2)}`) : "";
        return element("span", {}, number(row.metrics[name], isError(name) ? 3 : 2), bounds);
      };
      const shown = found.filter((row) => names.some((name) => name in row.metrics));
      const label = (row) => (row.run === null ? row.name : element("b", { class: "named" }, swatch(row.run), row.name));
      return table(["", ...names.map(metricTitle)], shown.map((row) => [label(row), ...names.map((name) => cell(row, name))]), `Evaluation on ${title}`);
    });
    const texts = statistics.map(({ name, text }) =>
      element("details", {}, element("summary", {}, `Speech statistics of ${name}`), element("pre", { tabindex: 0 }, text)),
    );
    return [element("h3", {}, title), ...tables, ...texts];
  });
  const lead = "Whole held-out recordings, with baselines fitted on the same training split. Small print: 95 % bootstrap intervals.";
  return section("evaluation", "Evaluation", element("p", { class: "note" }, lead), ...parts);
}

function drawSweeps() {
  if (!report.sweeps.length) return null;
  const parts = report.sweeps.flatMap((sweep) => {
    const rows = sweep.configurations.map(({ values, mean, lowest, highest, states, weights, frames, seconds }) => {
      const average = (list) => list.reduce((sum, value) => sum + value, 0) / list.length;
      const spread = lowest !== null && lowest !== highest ? `${number(lowest, 3)}${MISSING}${number(highest, 3)}` : "";
      const counts = [...new Set(states)].map((state) => `${states.filter((other) => other === state).length} ${state}`).join(", ");
      return [...values, number(mean, 3), spread, counts, number(weights), number(average(frames)), number(average(seconds) / 60, 1)];
    });
    const head = [...sweep.axes, metricTitle(sweep.monitor.replace("val/", "")), "lowest–highest", "trials", "weights", "frames", "minutes"];
    return [
      element("h3", {}, sweep.name),
      table(head, rows, `Configurations of ${sweep.name}, best first`),
      sweep.answer ? element("pre", { tabindex: 0 }, sweep.answer) : null,
      pictures(sweep.pictures.map(({ name, png }) => ({ title: `${sweep.name}, ${name}`, png }))),
    ];
  });
  return section("sweep", "Sweep", element("p", { class: "note" }, "Best first: the mean over seeds, on held-out speech."), ...parts);
}
