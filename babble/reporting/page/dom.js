"use strict";
// The page is built from the JSON in #report-data, which babble/reporting/collect.py describes. The files of this folder
// are joined into one script, in the order of SCRIPTS in babble/reporting/render.py.
// Text is only ever set as text, and styles through the style object: the page's policy forbids the rest.

const report = JSON.parse(document.getElementById("report-data").textContent);
const RUN_COLOURS = 6;
const MISSING = "–";

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value === true) made.setAttribute(name, "");
    else if (value !== false && value !== null) made.setAttribute(name, value);
  }
  made.append(...children.filter((child) => child !== null));
  return made;
}

function section(id, title, ...children) {
  return element("section", { id, "aria-labelledby": `${id}-title` }, element("h2", { id: `${id}-title` }, title), ...children);
}

function table(head, rows, caption) {
  const cell = (value, n) =>
    value instanceof Node && value.nodeName === "TH" ? value : element(n ? "td" : "th", n ? {} : { scope: "row" }, value);
  return element(
    "div",
    { class: "scroll", tabindex: 0, role: "region", "aria-label": caption },
    element(
      "table",
      {},
      element("thead", {}, element("tr", {}, ...head.map((text) => element("th", { scope: "col" }, text)))),
      element("tbody", {}, ...rows.map((row) => element("tr", {}, ...row.map(cell)))),
    ),
  );
}

// Calls draw when a node is about to scroll into view, so that a page of many runs opens quickly.
function whenNear(node, draw) {
  const observer = new IntersectionObserver(
    (entries) => {
      if (!entries.some((entry) => entry.isIntersecting)) return;
      observer.disconnect();
      draw();
    },
    { rootMargin: "600px" },
  );
  observer.observe(node);
}

const number = (value, digits = 0) =>
  value === null || value === undefined
    ? MISSING
    : value.toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits });
const clock = (seconds) => `${Math.floor(seconds / 60)}:${String(Math.floor(seconds % 60)).padStart(2, "0")}`;
const clockTenths = (seconds) => `${clock(seconds)}.${Math.floor((seconds % 1) * 10)}`;
const style = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const runColour = (name) => `--run-${report.runs.findIndex((run) => run.name === name) % RUN_COLOURS}`;
const plural = (count, word) => `${count} ${word}${count === 1 ? "" : "s"}`;

function swatch(name) {
  const mark = element("span", { class: "swatch", "aria-hidden": "true" });
  mark.style.background = `var(${name === null ? "--ink" : runColour(name)})`;
  return mark;
}

const named = (name) => element("span", { class: "named" }, swatch(name), name);

const METRICS = {
  bits_per_frame: "Bits per frame",
  bits_per_frame_without_unvoiced_pitch: "Bits per frame without unvoiced pitch",
  error_levels: "Mean absolute error, levels",
  loss: "Loss",
  lr: "Learning rate",
  frames_per_second: "Frames per second",
  times_real_time: "Times real time",
  peak_memory_gb: "Peak memory, GB",
  change_levels: "Change, levels per frame",
  lsp_disorder: "LSPs out of order, share",
  energy_db: "Energy, dB",
  pauses: "Pauses, share of time",
  voiced: "Voiced, share of frames",
  pitch_hz: "Pitch, Hz",
  pitch_range_semitones: "Pitch range, semitones",
};

function metricTitle(name) {
  const [group, part] = name.split("/");
  if (part && group === "bits") return `Bits per frame, ${part}`;
  if (part && group === "error") return `Mean absolute error, ${part}`;
  return METRICS[name] || name.replaceAll("_", " ");
}

// A picture that fills the window when it is clicked.
const enlarged = element("dialog", { class: "enlarged", onclick: () => enlarged.close() });

function picture(png, title) {
  const source = `data:image/png;base64,${png}`;
  const open = () => {
    enlarged.replaceChildren(element("button", { class: "close", type: "button" }, "Close"), element("img", { src: source, alt: title }));
    enlarged.showModal();
  };
  const button = element("button", { class: "picture", type: "button", "aria-label": `Enlarge ${title}`, onclick: open });
  button.append(element("img", { src: source, alt: title, loading: "lazy" }));
  return element("figure", {}, element("figcaption", {}, title), button);
}

const pictures = (list) => element("div", { class: "pictures" }, ...list.map(({ png, title }) => picture(png, title)));
