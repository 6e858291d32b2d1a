// ---- the field explorer: the fields of the frame that is pointed at, in physical units and levels.

const VOICED = "●";
const UNVOICED = "○";

const explorer = {
  element: element("aside", { class: "explorer", "aria-label": "Fields of the frame", hidden: true }),
  isClosed: false,

  show(clip, seconds) {
    if (this.isClosed || isBlind || !clip.data.frames) return;
    const t = clip.frameAt(seconds);
    if (this.clip === clip && this.t === t) return;
    Object.assign(this, { clip, t });
    this.element.hidden = false;
    this.element.replaceChildren(
      element("button", { class: "close", type: "button", "aria-label": "Hide the fields", onclick: () => this.close() }, "Hide"),
      element("p", {}, element("b", {}, clip.title), ` · ${clip.row.title} · ${seconds.toFixed(2)} s · frame ${t}`),
      element("div", { class: "fields" }, ...fieldCells(clip.data.frames, t)),
    );
  },

  // Once closed by hand it stays closed until a picture is clicked.
  close() {
    Object.assign(this, { isClosed: true, clip: null });
    this.element.hidden = true;
  },

  reopen() {
    Object.assign(this, { isClosed: false, clip: null });
  },
};

function fieldCells({ pitch_hz: pitch, energy_db: energy, lsp_hz: lsp, levels, mode }, t) {
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
  const inGroup = (group) => fields.map((field, f) => ({ ...field, f })).filter((field) => field.group === group);
  const voicing = inGroup("voicing").map(({ f }) => levels[t][f]);
  if (voicing.length) cell("voicing", voicing.map((bit) => (bit ? VOICED : UNVOICED)).join(""), "", voicing.join(" "));
  const physical = { pitch: pitch && [pitch[t]], energy: energy && [energy[t]], lsp: lsp && lsp[t] };
  for (const group of ["pitch", "energy", "lsp"]) {
    const own = inGroup(group);
    own.forEach(({ name, levels: count, f }, i) => {
      // Physical values are those of the frame's last fields: modes with two pitches per frame have a value for one.
      const values = physical[group];
      const value = values ? values[i - own.length + values.length] : undefined;
      const text = value === undefined ? MISSING : value === null ? "unvoiced" : String(value);
      cell(name, text, typeof value === "number" ? { energy: "dB" }[group] || "Hz" : "", `${levels[t][f]} of ${count - 1}`);
    });
  }
  return cells;
}
