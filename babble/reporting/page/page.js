"use strict";
// Draws the page from the JSON in #report-data, which babble/report.py describes.
// Text is only ever set as text, and styles through the style object: the page's policy forbids the rest.

const report = JSON.parse(document.getElementById("report-data").textContent);
const RUN_COLOURS = 6;
const MISSING = "–";

// ---- small things

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

// Calls draw once a node is about to be seen: a page of many runs is at hand before all of it is drawn.
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
const place = (seconds) => `${clock(seconds)}.${Math.floor((seconds % 1) * 10)}`;
const style = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const runNumber = (name) => report.runs.findIndex((run) => run.name === name);
const runColour = (name) => `--run-${runNumber(name) % RUN_COLOURS}`;
const plural = (count, word) => `${count} ${word}${count === 1 ? "" : "s"}`;

function swatch(name) {
  const mark = element("span", { class: "swatch", "aria-hidden": "true" });
  mark.style.background = `var(${name === null ? "--muted" : runColour(name)})`;
  return mark;
}

const named = (name) => element("span", { class: "named" }, swatch(name), name);

const FIGURES = {
  bits_per_frame: "Bits per frame",
  bits_per_frame_without_unvoiced_pitch: "Without unvoiced pitch",
  error_levels: "Mean error in levels",
  loss: "Loss",
  frames_per_second: "Frames a second",
};

function figureTitle(name) {
  const [group, part] = name.split("/");
  if (part && group === "bits") return `Bits, ${part}`;
  if (part && group === "error") return `Error, ${part}`;
  return FIGURES[name] || name.replaceAll("_", " ");
}

// ---- what was run

// Runs on the same shards share their baselines; where there are several shards, names say of which.
function baselinesOf(runs, figure) {
  const shards = (run) => run.settings["data.shards"];
  const areSame = new Set(runs.map(shards)).size === 1;
  const found = new Map();
  for (const run of runs) {
    for (const [name, values] of Object.entries(run.baselines)) {
      const label = areSame ? name : `${name} of ${shards(run)}`;
      if (typeof values[figure] === "number") found.set(label, { label, value: values[figure] });
    }
  }
  return [...found.values()];
}

function drawBars(figure) {
  const name = figure.replace("val/", "");
  const runs = report.runs.filter((run) => run.figure === figure && run.best !== null);
  const bars = new Map(baselinesOf(runs, name).map((baseline) => [baseline.label, { ...baseline, run: null }]));
  for (const run of runs) bars.set(run.name, { label: run.name, value: run.best, run: run.name });
  const sorted = [...bars.values()].sort((a, b) => b.value - a.value);
  const rows = sorted.map(({ label, value, run }) => {
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
  return element(
    "figure",
    { class: "bars" },
    element("figcaption", {}, element("b", {}, figureTitle(name)), " on held-out speech, best of each run; lower is better"),
    element("ul", {}, ...rows),
  );
}

function drawRuns() {
  if (!report.runs.length) return null;
  const runs = report.runs;
  const keys = [...new Set(runs.flatMap((run) => Object.keys(run.settings)))];
  const differing = keys.filter((key) => new Set(runs.map((run) => run.settings[key])).size > 1 && key !== "recipe");
  const facts = [
    ["recipe", (run) => run.recipe || MISSING],
    ["best held-out figure", (run) => (run.best === null ? MISSING : `${number(run.best, 2)} ${figureTitle(run.figure.replace("val/", "")).toLowerCase()}`)],
    ["weights", (run) => number(run.weights)],
    ["frames heard", (run) => number(run.frames) + (run.hours ? ` (${number(run.hours, run.hours < 10 ? 1 : 0)} h)` : "")],
    ["steps", (run) => number(run.steps)],
    ["state", (run) => (run.is_finished ? "finished" : "not finished") + (run.starts > 1 ? `, ${run.starts} starts` : "")],
    ["started", (run) => (run.start ? run.start.time.slice(0, 16).replace("T", " ") : MISSING)],
    ["git revision", (run) => (run.start && run.start.git) || MISSING],
    ["machine", (run) => (run.start ? run.start.machine : MISSING)],
  ];
  const head = () => ["", ...runs.map((run) => named(run.name))];
  const setting = (key) => [key, ...runs.map((run) => run.settings[key] ?? MISSING)];
  const group = (text) => [element("th", { colspan: runs.length + 1, class: "group" }, text)];
  const rows = [
    ...(differing.length ? [group("Settings that differ"), ...differing.map(setting), group("The runs")] : []),
    ...facts.map(([label, say]) => [label, ...runs.map(say)]),
  ];
  const figures = [...new Set(runs.filter((run) => run.best !== null).map((run) => run.figure))];
  const versions = runs.filter((run) => run.start).map((run) => {
    const all = Object.entries(run.start.versions).map(([name, version]) => `${name} ${version}`);
    return element("p", { class: "note" }, `${run.name}: Python ${run.start.python}, ${all.join(", ")}`);
  });
  return section(
    "runs",
    "What was run",
    ...figures.map(drawBars),
    table(head(), rows, "Runs"),
    element("details", {}, element("summary", {}, "Every setting"), table(head(), keys.map(setting), "Settings"), ...versions),
  );
}

// ---- players: one audio element, so that only one clip plays at once

const player = element("audio", { preload: "auto" });
const clips = [];
let current = null;
let isBlind = false;

const VOICED = "●";
const UNVOICED = "○";

class Clip {
  constructor(data, row) {
    Object.assign(this, { data, row, time: 0, isReal: data.run === null && !data.is_recording });
    this.button = element("button", { class: "play", type: "button", onclick: () => this.toggle() });
    this.name = element("b", {});
    this.detail = element("span", {});
    this.clock = element("span", { class: "clock", "aria-hidden": "true" });
    this.cursor = element("span", { class: "cursor" });
    this.canvas = data.frames ? element("canvas", { "aria-hidden": "true" }) : null;
    this.slider = element(
      "div",
      {
        class: data.frames ? "picture" : "picture without-frames",
        role: "slider",
        tabindex: 0,
        "aria-valuemin": 0,
        "aria-valuemax": data.seconds.toFixed(2),
        onkeydown: (event) => this.onKey(event),
        onpointerdown: (event) => this.onPointer(event, true),
        onpointermove: (event) => this.onPointer(event, false),
        onpointerleave: () => explorer.show(this, this.time),
        onfocus: () => explorer.show(this, this.time),
      },
      this.canvas,
      this.cursor,
    );
    this.guess = element(
      "button",
      { class: "guess", type: "button", "aria-pressed": "false", onclick: () => this.row.mark(this) },
      "This is the real one",
    );
    this.mark = swatch(data.run);
    if (data.run === null) this.mark.style.background = "var(--ink)";
    const without = data.frames ? null : element("p", { class: "note" }, "No picture: its frames were not kept.");
    this.element = element(
      "article",
      { class: "clip" },
      element("div", { class: "clip-head" }, this.button, this.mark, element("div", { class: "clip-name" }, this.name, element("span", {}, this.detail, this.clock))),
      this.slider,
      without,
      this.guess,
    );
    this.rename(data.name, data.detail);
  }

  get rate() {
    return report.modes[this.data.frames.mode].frames_per_second;
  }

  // Where the network takes over, or the beginning.
  get start() {
    return isBlind || startsAfterPrompt.checked ? Math.min(this.row.data.prompt_seconds, this.data.seconds) % this.data.seconds : 0;
  }

  rename(name, detail) {
    this.title = detail ? `${name}, ${detail}` : name;
    this.name.textContent = name;
    this.detail.textContent = detail;
    this.element.setAttribute("aria-label", `${this.title}, ${this.row.title}`);
    this.slider.setAttribute("aria-label", `Topology in ${this.title}, ${this.row.title}`);
    this.update();
  }

  get url() {
    if (!this.made) {
      const bytes = Uint8Array.from(atob(this.data.audio), (letter) => letter.charCodeAt(0));
      this.made = URL.createObjectURL(new Blob([bytes], { type: "audio/flac" }));
    }
    return this.made;
  }

  get isPlaying() {
    return current === this && !player.paused;
  }

  toggle() {
    if (this.isPlaying) {
      player.pause();
      return;
    }
    const previous = current;
    if (current !== this) {
      current = this;
      player.src = this.url;
    }
    if (this.time >= this.data.seconds - 0.01) this.time = this.start;
    player.currentTime = this.time;
    player.play().catch((error) => {
      // Paused, or another clip was chosen, before it began: nothing is wrong.
      if (error.name !== "AbortError") throw error;
    });
    if (previous && previous !== this) previous.update();
  }

  seek(seconds) {
    this.time = Math.max(0, Math.min(seconds, this.data.seconds));
    if (current === this) player.currentTime = this.time;
    this.update();
    explorer.show(this, this.time);
  }

  point(seconds) {
    explorer.close(false);
    this.seek(seconds);
  }

  onKey(event) {
    const step = this.data.frames ? 1 / this.rate : 0.1;
    const moves = {
      ArrowLeft: -step, ArrowDown: -step, ArrowRight: step, ArrowUp: step,
      PageDown: -1, PageUp: 1, Home: -Infinity, End: Infinity,
    };
    if (event.key === " " || event.key === "Enter") this.toggle();
    else if (event.key in moves) {
      // From the middle of a frame, so that rounding never leaves one out.
      const at = this.data.frames ? (Math.floor(this.time / step + 1e-6) + 0.5) * step : this.time;
      this.point((Number.isFinite(moves[event.key]) ? at : 0) + (event.key === "Home" ? 0 : Math.min(moves[event.key], this.data.seconds)));
    } else return;
    event.preventDefault();
  }

  onPointer(event, isDown) {
    const box = this.slider.getBoundingClientRect();
    const at = ((event.clientX - box.left) / box.width) * this.data.seconds;
    if (isDown) this.slider.setPointerCapture(event.pointerId);
    if (isDown || event.buttons === 1) this.point(at);
    else explorer.show(this, at);
  }

  update() {
    const { seconds } = this.data;
    const verb = this.isPlaying ? "Pause" : "Play";
    this.button.classList.toggle("is-playing", this.isPlaying);
    if (this.label !== `${verb} ${this.title}`) {
      this.label = `${verb} ${this.title}`;
      this.button.setAttribute("aria-label", `${this.label}, ${this.row.title}`);
    }
    this.cursor.style.left = `${(100 * this.time) / seconds}%`;
    this.clock.textContent = `${clock(this.time)} / ${clock(seconds)}`;
    this.slider.setAttribute("aria-valuenow", this.time.toFixed(2));
    this.slider.setAttribute("aria-valuetext", this.describe(this.time));
  }

  frameAt(seconds) {
    return Math.max(0, Math.min(Math.floor(seconds * this.rate), this.data.frames.levels.length - 1));
  }

  describe(seconds) {
    const said = [`${seconds.toFixed(1)} s`];
    if (this.data.frames && !isBlind) {
      const { pitch_hz: pitch, energy_db: energy } = this.data.frames;
      const t = this.frameAt(seconds);
      if (pitch) said.push(pitch[t] === null ? "unvoiced" : `${pitch[t]} Hz`);
      if (energy) said.push(`${energy[t]} dB`);
    }
    return said.join(", ");
  }

  // Pitch above, the spectrum that LSPs and energy describe below.
  draw() {
    const { clientWidth: width, clientHeight: height } = this.slider;
    if (!this.canvas || !width) return;
    const scale = window.devicePixelRatio || 1;
    this.canvas.width = width * scale;
    this.canvas.height = height * scale;
    const context = this.canvas.getContext("2d");
    context.scale(scale, scale);
    const pitch = this.data.frames.pitch_hz;
    context.fillStyle = style("--prompt");
    context.fillRect(0, 0, (width * this.row.data.prompt_seconds) / this.data.seconds, height);
    const top = pitch ? Math.round(height * 0.32) : 0;
    context.drawImage(this.spectrum(style("--ink")), 0, top, width, height - top);
    if (!pitch) return;
    context.fillStyle = style("--line");
    context.fillRect(0, top, width, 1);
    context.fillStyle = style("--pitch");
    const step = width / pitch.length;
    const y = (hz) => top - 3 - ((top - 6) * Math.log(hz / 50)) / Math.log(8);
    pitch.forEach((hz, t) => hz && context.fillRect(t * step, y(hz) - 1, Math.max(step, 1.2), 2));
  }

  // A pixel a frame and band. Where labels hold the LSPs: a pixel a frame and field, its level.
  spectrum(ink) {
    const { lsp_hz: lsp, energy_db: energy, levels, mode } = this.data.frames;
    const fields = report.modes[mode].fields;
    const bands = lsp ? SPECTRUM_BANDS : fields.length;
    const canvas = element("canvas", { width: levels.length, height: bands });
    const context = canvas.getContext("2d");
    const picture = context.createImageData(levels.length, bands);
    const shade = (t, band, share) => (picture.data[4 * (band * levels.length + t) + 3] = 255 * Math.max(0, Math.min(1, share)));
    if (lsp) {
      const powers = lsp.map((hz, t) => envelope(hz).map((db) => db + (energy ? energy[t] : 0)));
      // Black is where one frame in twenty peaks: the sharpest peaks of all are no measure.
      const peaks = powers.map((ofFrame) => Math.max(...ofFrame)).sort((a, b) => b - a);
      const loudest = peaks[Math.floor(peaks.length / 20)];
      powers.forEach((ofFrame, t) => ofFrame.forEach((db, band) => shade(t, bands - 1 - band, 1 + (db - loudest) / SPECTRUM_RANGE_DB)));
    } else levels.forEach((ofFrame, t) => ofFrame.forEach((level, f) => shade(t, f, level / (fields[f].levels - 1))));
    context.putImageData(picture, 0, 0);
    context.globalCompositeOperation = "source-in";
    context.fillStyle = ink;
    context.fillRect(0, 0, levels.length, bands);
    return canvas;
  }
}

const SPECTRUM_BANDS = 64;
const SPECTRUM_RANGE_DB = 45;
// Lifts the high formants, which are far weaker than the low ones, by 6 dB an octave.
const BANDS = Array.from({ length: SPECTRUM_BANDS }, (_, band) => {
  const w = (Math.PI * (band + 0.5)) / SPECTRUM_BANDS;
  return { cos: Math.cos(w), odd: Math.cos(w / 2), even: Math.sin(w / 2), lift: 20 * Math.log10(w) };
});

// The all-pole spectrum of line spectral pairs in dB, up to a constant: -10 log10 |A|^2, where A is half the sum of two
// polynomials whose roots on the unit circle are the odd and the even pairs.
function envelope(lsp) {
  const roots = lsp.map((hz) => Math.cos((Math.PI * Math.min(hz, 4000)) / 4000));
  return BANDS.map((band) => {
    let { odd, even } = band;
    for (let i = 0; i < roots.length; i += 2) odd *= band.cos - roots[i];
    for (let i = 1; i < roots.length; i += 2) even *= band.cos - roots[i];
    return band.lift - 10 * Math.log10(odd * odd + even * even + 1e-12);
  });
}

player.addEventListener("play", follow);
for (const event of ["pause", "ended", "seeked"]) player.addEventListener(event, () => current && current.update());

function follow() {
  if (!current) return;
  if (player.readyState && !player.seeking) current.time = player.currentTime;
  current.update();
  explorer.show(current, current.time);
  if (!player.paused) requestAnimationFrame(follow);
}

// ---- the field explorer

const explorer = {
  element: element(
    "aside",
    { class: "explorer is-empty", "aria-label": "Fields of the frame" },
    element("p", {}, "Point at a picture to read its frame in Hz, dB and levels."),
  ),
  isClosed: false,

  show(clip, seconds) {
    if (this.isClosed || isBlind || !clip.data.frames) return;
    const t = clip.frameAt(seconds);
    if (this.clip === clip && this.t === t) return;
    Object.assign(this, { clip, t });
    const { pitch_hz: pitch, energy_db: energy, lsp_hz: lsp, levels, mode } = clip.data.frames;
    const fields = report.modes[mode].fields;
    const cells = [];
    const cell = (name, value, unit, level) =>
      cells.push(
        element(
          "div",
          { class: "field" },
          element("span", { class: "field-name" }, name),
          element("span", { class: "field-value" }, value, unit ? element("small", {}, ` ${unit}`) : ""),
          element("span", { class: "field-level" }, level),
        ),
      );
    const of = (group) => fields.map((field, f) => ({ ...field, f })).filter((field) => field.group === group);
    const voicing = of("voicing").map(({ f }) => levels[t][f]);
    if (voicing.length) cell("voicing", voicing.map((bit) => (bit ? VOICED : UNVOICED)).join(""), "", voicing.join(" "));
    const physical = { pitch: pitch && [pitch[t]], energy: energy && [energy[t]], lsp: lsp && lsp[t] };
    for (const group of ["pitch", "energy", "lsp"]) {
      const own = of(group);
      own.forEach(({ name, levels: count, f }, i) => {
        // Physical values are those of the frame's last fields: modes with two pitches a frame have a value for one.
        const values = physical[group];
        const value = values ? values[i - own.length + values.length] : undefined;
        const said = value === undefined ? MISSING : value === null ? "unvoiced" : String(value);
        cell(name, said, typeof value === "number" ? { energy: "dB" }[group] || "Hz" : "", `${levels[t][f]} of ${count - 1}`);
      });
    }
    this.element.classList.remove("is-empty");
    this.element.replaceChildren(
      element("button", { class: "close", type: "button", "aria-label": "Hide the fields", onclick: () => this.close(true) }, "Hide"),
      element("p", {}, element("b", {}, clip.title), ` · ${clip.row.title} · ${seconds.toFixed(2)} s · frame ${t}`),
      element("div", { class: "fields" }, ...cells),
    );
  },

  // Closed by hand it stays away until a picture is clicked.
  close(isClosed) {
    this.isClosed = this.element.hidden = isClosed;
    this.clip = null;
  },
};

// ---- rows, and samples blind

const rows = [];
const startsAfterPrompt = element("input", { type: "checkbox", onchange: rewind });

function rewind() {
  player.pause();
  for (const clip of clips) clip.seek(clip.start);
}

class Row {
  constructor(data, n) {
    this.data = data;
    this.title = `prompt ${n + 1}`;
    this.clips = data.clips.map((clip) => new Clip(clip, this));
    // A recording that no codec has touched is told from the rest at once.
    this.blindClips = this.clips.filter((clip) => !clip.data.is_recording);
    this.marked = null;
    this.players = element("div", { class: "clips" }, ...this.clips.map((clip) => clip.element));
    this.element = element(
      "div",
      { class: "row" },
      element(
        "h3",
        {},
        `Prompt ${n + 1}`,
        element("span", { class: "note" }, `${data.recording}, from ${place(data.second)}; ${number(data.prompt_seconds, 1)} s are heard first`),
      ),
      this.players,
    );
    clips.push(...this.clips);
  }

  get isGuessable() {
    return this.blindClips.some((clip) => clip.isReal) && this.blindClips.length > 1;
  }

  mark(marked) {
    this.marked = marked;
    for (const clip of this.clips) clip.guess.setAttribute("aria-pressed", String(clip === marked));
  }

  hide() {
    this.mark(null);
    const order = this.blindClips.map((clip) => [Math.random(), clip]).sort((a, b) => a[0] - b[0]).map(([, clip]) => clip);
    this.players.replaceChildren(...order.map((clip) => clip.element));
    order.forEach((clip, n) => {
      clip.letter = String.fromCharCode(65 + n);
      clip.element.classList.remove("is-right", "is-wrong");
      clip.guess.hidden = !this.isGuessable;
      clip.rename(`Clip ${clip.letter}`, "");
    });
  }

  tell() {
    for (const clip of this.blindClips) {
      clip.rename(`${clip.letter}: ${clip.data.name}`, clip.data.detail);
      if (clip === this.marked) clip.element.classList.add(clip.isReal ? "is-right" : "is-wrong");
    }
  }

  show() {
    this.players.replaceChildren(...this.clips.map((clip) => clip.element));
    for (const clip of this.clips) {
      clip.element.classList.remove("is-right", "is-wrong");
      clip.rename(clip.data.name, clip.data.detail);
    }
  }
}

function drawPlayers() {
  if (!report.rows.length) return null;
  const status = element("p", { role: "status", class: "status" });
  const blind = element("button", { type: "button", "aria-pressed": "false", onclick: toggleBlind }, "Listen blind");
  const reveal = element("button", { type: "button", class: "strong", onclick: tell }, "Reveal");
  const skip = element("label", { class: "check" }, startsAfterPrompt, " Start where the network takes over");
  reveal.hidden = true;
  rows.push(...report.rows.map((data, n) => new Row(data, n)));

  function toggleBlind() {
    const hides = blind.getAttribute("aria-pressed") !== "true";
    blind.setAttribute("aria-pressed", String(hides));
    reveal.hidden = !hides;
    skip.hidden = hides;
    setBlind(hides);
    for (const row of rows) hides ? row.hide() : row.show();
    status.textContent = hides ? "Names and pictures are hidden and every row is shuffled. Which clip is the real voice?" : "";
    rewind();
  }

  function tell() {
    setBlind(false);
    reveal.hidden = true;
    for (const row of rows) row.tell();
    const guessed = rows.filter((row) => row.marked);
    const right = guessed.filter((row) => row.marked.isReal).length;
    const expected = guessed.reduce((sum, row) => sum + 1 / row.blindClips.length, 0);
    status.textContent = guessed.length
      ? `You found the real voice in ${right} of ${plural(guessed.length, "row")}; guessing finds ${number(expected, 1)}.`
      : "No clip was marked.";
  }

  function setBlind(value) {
    isBlind = value;
    page.classList.toggle("is-blind", value);
  }

  const listed = report.runs.filter((run) => run.heard.length > run.embedded.length).map((run) => {
    const epochs = (names) => names.map((name) => Number(name.replace("epoch-", ""))).join(", ");
    return element("p", { class: "note" }, `${run.name} was heard at epochs ${epochs(run.heard)}; here are ${epochs(run.embedded)}.`);
  });
  return section(
    "listen",
    "Listen",
    element(
      "p",
      { class: "lead" },
      "Each network hears the shaded seconds of real speech, then goes on alone. What it has learned from is codec frames, so real speech, too, is heard as the codec renders it" +
        (clips.some((clip) => clip.data.is_recording) ? "; before it stands the recording." : "."),
    ),
    element(
      "p",
      { class: "note" },
      "Pictures: pitch above (50 to 400 Hz), below it the spectrum that line spectral pairs and energy describe (0 to 4 kHz). Click or drag to seek; space plays, arrows go frame by frame.",
    ),
    ...listed,
    element("div", { class: "tools" }, blind, reveal, skip),
    status,
    ...rows.map((row) => row.element),
    clips.some((clip) => clip.data.frames) ? explorer.element : null,
  );
}

// ---- curves

const charts = [];

// The nearest point that a curve has: not all are logged at the same steps.
function nearestPoint(chart, series, n) {
  const values = chart.data[series];
  for (let away = 0; away < values.length; away++) {
    if (values[n - away] != null) return n - away;
    if (values[n + away] != null) return n + away;
  }
  return n;
}

function markStages(chart, runs) {
  const { ctx: context, bbox: box } = chart;
  // Runs that change stage at the same step share a mark.
  const marks = new Map();
  for (const run of runs) {
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
    // Each on a line of its own: marks may be close together.
    context.fillText(mark, x + 4 * devicePixelRatio, box.top + (12 + 13 * (n % 6)) * devicePixelRatio);
  });
  context.restore();
}

function drawChart(column) {
  const runs = report.runs.filter((run) => column in run.curves);
  const [part, ...rest] = column.split("/");
  const title = `${figureTitle(rest.join("/"))}, ${{ val: "held out", train: "training" }[part] || part}`;
  const baselines = part === "val" ? baselinesOf(runs, rest.join("/")) : [];
  const host = element("div", {
    class: "chart",
    tabindex: 0,
    role: "group",
    "aria-label": `${title}. Arrows read the values, plus and minus zoom, 0 shows all.`,
  });
  const whole = element("button", { type: "button", class: "whole", onclick: () => zoomTo(WHOLE) }, "Show all");
  const make = () => {
    const chart = plotCurves(host, column, runs, baselines);
    host.addEventListener("keydown", (event) => onChartKey(event, chart));
  };
  whenNear(host, make);
  return element("figure", {}, element("figcaption", {}, element("b", {}, title), whole), host);
}

function plotCurves(host, column, runs, baselines) {
  const joined = uPlot.join(runs.map((run) => [run.curves[column].steps, run.curves[column].values]));
  const data = [...joined, ...baselines.map(({ value }) => joined[0].map(() => value))];
  const digits = Math.max(...joined.slice(1).flat()) >= 1000 ? 0 : 3;
  const say = (chart, value) => number(value, digits);
  const axis = { stroke: () => style("--muted"), grid: { stroke: () => style("--line"), width: 1 }, ticks: { show: false }, font: "12px system-ui, sans-serif" };
  const chart = new uPlot(
    {
      width: 300,
      height: 230,
      cursor: { sync: { key: "curves" }, dataIdx: nearestPoint, focus: { prox: 30 }, y: false, bind: { dblclick: () => () => zoomTo(WHOLE) } },
      focus: { alpha: 0.35 },
      scales: { x: { time: false } },
      axes: [{ ...axis, size: 28 }, { ...axis, size: 56 }],
      legend: { markers: { fill: (chart, n) => (n > runs.length ? "transparent" : chart.series[n].stroke(chart, n)) } },
      series: [
        { label: "step", value: (chart, value) => number(value) },
        ...runs.map((run) => ({ label: run.name, stroke: () => style(runColour(run.name)), width: 2, spanGaps: true, value: say, points: { show: run.curves[column].steps.length < 40, size: 5 } })),
        ...baselines.map(({ label }, n) => ({ label, stroke: () => style("--baseline"), width: 1.5, dash: n ? [6, 4] : [2, 3], value: say, points: { show: false } })),
      ],
      hooks: { draw: [(chart) => markStages(chart, runs)] },
    },
    data,
    host,
  );
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
  const range = charts.length ? charts[0].scales.x : WHOLE;
  chart.setScale("x", { min: range.min, max: range.max });
  charts.push(chart);
  new ResizeObserver(() => host.clientWidth && chart.setSize({ width: host.clientWidth, height: 230 })).observe(host);
  return chart;
}

// All charts show the same steps, whatever was logged when; uPlot hands a drag on to those of one sync key.
const lastStep = Math.max(0, ...report.runs.flatMap((run) => Object.values(run.curves).map(({ steps }) => steps.at(-1))));
const WHOLE = { min: 0, max: lastStep };

function zoomTo({ min, max }) {
  for (const chart of charts) chart.setScale("x", { min, max });
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
  else if (event.key === "0") zoomTo(WHOLE);
  else return;
  event.preventDefault();
}

// Charts are made when they are first shown: a training may log a hundred figures.
function chartGroup(title, columns, isOpen) {
  if (!columns.length) return null;
  if (isOpen) return element("div", { class: "charts" }, ...columns.map(drawChart));
  const group = element("details", {}, element("summary", {}, title));
  group.addEventListener("toggle", () => group.append(element("div", { class: "charts" }, ...columns.map(drawChart))), { once: true });
  return group;
}

function drawCurves() {
  const all = [...new Set(report.runs.flatMap((run) => Object.keys(run.curves)))].filter((name) => !["epoch", "train/stage"].includes(name));
  if (!all.length) return null;
  const first = ["val/bits_per_frame", "val/error_levels", "train/loss", "train/frames_per_second"].filter((name) => all.includes(name));
  const byGroup = all.filter((name) => /^val\/(bits|error)\//.test(name));
  const rest = all.filter((name) => ![...first, ...byGroup].includes(name));
  return section(
    "curves",
    "Curves",
    element("p", { class: "note" }, "Over optimizer steps. Drag to zoom, double-click to see all again; click a name to hide its curve. Dashed: baselines on the same held-out speech."),
    chartGroup("", first, true),
    chartGroup("By field group", byGroup, false),
    chartGroup("Everything else that was logged", rest, false),
  );
}

// ---- evaluations and sweeps

function drawEvaluations() {
  if (!report.evaluations.length) return null;
  const parts = report.evaluations.flatMap(({ title, rows: found, sounds }) => {
    const columns = [...new Set(found.flatMap((row) => Object.keys(row.figures)))];
    const groups = [columns.filter((name) => !name.startsWith("error")), columns.filter((name) => name.startsWith("error"))];
    const tables = groups.filter((names) => names.length).map((names) => {
      const cell = (row, name) => {
        const interval = row.intervals[name];
        const said = interval ? element("small", {}, ` ${number(interval[0], 2)}${MISSING}${number(interval[1], 2)}`) : "";
        return element("span", {}, number(row.figures[name], names[0].startsWith("error") ? 3 : 2), said);
      };
      const shown = found.filter((row) => names.some((name) => name in row.figures));
      const label = (row) => (row.run === null ? row.name : element("b", { class: "named" }, swatch(row.run), row.name));
      return table(["", ...names.map(figureTitle)], shown.map((row) => [label(row), ...names.map((name) => cell(row, name))]), `Evaluation on ${title}`);
    });
    const told = sounds.map(({ name, text }) =>
      element("details", {}, element("summary", {}, `How the babble of ${name} sounds, by measure`), element("pre", { tabindex: 0 }, text)),
    );
    return [element("h3", {}, title), ...tables, ...told];
  });
  const lead = "Held-out speech, whole recordings, beside baselines that learned from the same training split. Small figures: a bootstrap interval of 95 %.";
  return section("evaluation", "Evaluation", element("p", { class: "note" }, lead), ...parts);
}

function drawSweeps() {
  if (!report.sweeps.length) return null;
  const parts = report.sweeps.flatMap((sweep) => {
    const rows = sweep.configurations.map(({ values, mean, lowest, highest, states, weights, frames, seconds }) => {
      const average = (list) => list.reduce((sum, value) => sum + value, 0) / list.length;
      const spread = lowest !== null && lowest !== highest ? `${number(lowest, 3)}${MISSING}${number(highest, 3)}` : "";
      const counts = [...new Set(states)].map((state) => `${states.filter((other) => other === state).length} ${state}`).join(", ");
      const cells = [number(mean, 3), spread, counts, number(weights), number(average(frames)), number(average(seconds) / 60, 1)];
      return [values[0], ...values.slice(1), ...cells];
    });
    const head = [...sweep.axes, figureTitle(sweep.figure.replace("val/", "")), "lowest–highest", "trials", "weights", "frames", "minutes"];
    return [
      element("h3", {}, sweep.name),
      table(head, rows, `Configurations of ${sweep.name}, best first`),
      sweep.answer ? element("pre", { tabindex: 0 }, sweep.answer) : null,
      ...sweep.pictures.map(({ name, png }) => element("img", { src: `data:image/png;base64,${png}`, alt: `${name} of ${sweep.name}` })),
    ];
  });
  return section("sweep", "Sweep", element("p", { class: "note" }, "Best first: the mean over random seeds, on held-out speech."), ...parts);
}

// ---- the page

const page = element("main", {});
const sections = [drawRuns(), drawPlayers(), drawCurves(), drawEvaluations(), drawSweeps()].filter(Boolean);
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
document.body.append(page, player);

for (const clip of clips) whenNear(clip.slider, () => new ResizeObserver(() => clip.draw()).observe(clip.slider));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
  for (const clip of clips) clip.draw();
  for (const chart of charts) chart.redraw();
});
performance.mark("interactive");
