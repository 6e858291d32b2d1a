// ---- the Listen section: a row of clips per prompt, and blind listening.

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
    // An original recording, which has not passed the codec, would be recognised at once.
    this.blindClips = this.clips.filter((clip) => !clip.data.is_recording);
    this.marked = null;
    this.players = element("div", { class: "clips" }, ...this.clips.map((clip) => clip.element));
    const origin = `${data.recording} from ${clockTenths(data.second)}; the first ${number(data.prompt_seconds, 1)} s are the prompt`;
    this.element = element(
      "div",
      { class: "row" },
      element("h3", {}, `Prompt ${n + 1}`, element("span", { class: "note" }, origin)),
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

  reveal() {
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

function blindTools() {
  const status = element("p", { role: "status", class: "status" });
  const blind = element("button", { type: "button", "aria-pressed": "false", onclick: toggleBlind }, "Blind listening");
  const reveal = element("button", { type: "button", class: "strong", onclick: showAnswers }, "Reveal");
  const skip = element("label", { class: "check" }, startsAfterPrompt, " Start at the end of the prompt");
  reveal.hidden = true;

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

  function showAnswers() {
    setBlind(false);
    reveal.hidden = true;
    for (const row of rows) row.reveal();
    const guessed = rows.filter((row) => row.marked);
    const right = guessed.filter((row) => row.marked.isReal).length;
    const expected = guessed.reduce((sum, row) => sum + 1 / row.blindClips.length, 0);
    status.textContent = guessed.length
      ? `You found the real voice in ${right} of ${plural(guessed.length, "row")}; chance is ${number(expected, 1)}.`
      : "No clip was marked.";
  }

  function setBlind(value) {
    isBlind = value;
    page.classList.toggle("is-blind", value);
  }

  return [element("div", { class: "tools" }, blind, reveal, skip), status];
}

function drawListen() {
  if (!report.rows.length) return null;
  rows.push(...report.rows.map((data, n) => new Row(data, n)));
  const omitted = report.runs.filter((run) => run.sampled_epochs.length > run.shown_epochs.length).map((run) =>
    element("p", { class: "note" }, `${run.name} has samples from epochs ${run.sampled_epochs.join(", ")}; shown: ${run.shown_epochs.join(", ")}.`),
  );
  const hasRecordings = clips.some((clip) => clip.data.is_recording);
  return section(
    "listen",
    "Listen",
    element(
      "p",
      { class: "lead" },
      "Each network receives the shaded seconds of real speech as its prompt and continues them. Real speech is decoded from codec frames too, because networks are trained on frames" +
        (hasRecordings ? "; the original recording comes first." : "."),
    ),
    element(
      "p",
      { class: "note" },
      "Pictures: pitch at the top (50 to 400 Hz), below it the spectrum that line spectral pairs and energy describe (0 to 4 kHz). Point at a frame to read its fields; click or drag to seek; space plays, arrow keys step by frames.",
    ),
    ...omitted,
    ...blindTools(),
    ...rows.map((row) => row.element),
    clips.some((clip) => clip.data.frames) ? explorer.element : null,
  );
}
