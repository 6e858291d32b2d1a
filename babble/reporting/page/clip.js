// ---- clips: a player with the picture of its frames. One audio element, so that only one clip plays at once.

const player = element("audio", { preload: "auto" });
const clips = [];
let current = null;
let isBlind = false;

class Clip {
  constructor(data, row) {
    Object.assign(this, { data, row, time: 0, isReal: data.run === null && !data.is_recording });
    this.button = element("button", { class: "play", type: "button", onclick: () => this.toggle() });
    this.name = element("b", {});
    this.detail = element("span", {});
    this.clock = element("span", { class: "clock", "aria-hidden": "true" });
    this.cursor = element("span", { class: "cursor" });
    this.canvas = data.frames ? element("canvas", { "aria-hidden": "true" }) : null;
    this.slider = this.makeSlider();
    this.guess = element(
      "button",
      { class: "guess", type: "button", "aria-pressed": "false", onclick: () => this.row.mark(this) },
      "This is the real voice",
    );
    this.enlarge = element("button", { class: "plain", type: "button", "aria-pressed": "false", onclick: () => this.resize() }, "Enlarge");
    this.enlarge.hidden = !data.frames;
    this.save = element("button", { class: "plain", type: "button", onclick: () => this.download() }, "Save WAV");
    const title = element("div", { class: "clip-name" }, this.name, element("span", {}, this.detail, this.clock));
    this.element = element(
      "article",
      { class: "clip" },
      element("div", { class: "clip-head" }, this.button, swatch(data.run), title),
      this.slider,
      data.frames ? null : element("p", { class: "note" }, "No picture: the frames were not kept."),
      this.guess,
      element("div", { class: "clip-actions" }, this.enlarge, this.save),
    );
    this.rename(data.name, data.detail);
  }

  makeSlider() {
    return element(
      "div",
      {
        class: this.data.frames ? "frames" : "frames without-frames",
        role: "slider",
        tabindex: 0,
        "aria-valuemin": 0,
        "aria-valuemax": this.data.seconds.toFixed(2),
        onkeydown: (event) => this.onKey(event),
        onpointerdown: (event) => this.onPointer(event, true),
        onpointermove: (event) => this.onPointer(event, false),
        onpointerleave: () => explorer.show(this, this.time),
        onfocus: () => explorer.show(this, this.time),
      },
      this.canvas,
      this.cursor,
    );
  }

  get rate() {
    return report.modes[this.data.frames.mode].frames_per_second;
  }

  // The end of the prompt, or the beginning of the clip.
  get start() {
    return isBlind || startsAfterPrompt.checked ? Math.min(this.row.data.prompt_seconds, this.data.seconds) % this.data.seconds : 0;
  }

  rename(name, detail) {
    this.title = detail ? `${name}, ${detail}` : name;
    this.name.textContent = name;
    this.detail.textContent = detail;
    this.element.setAttribute("aria-label", `${this.title}, ${this.row.title}`);
    this.slider.setAttribute("aria-label", `Position in ${this.title}, ${this.row.title}`);
    this.save.setAttribute("aria-label", `Save WAV of ${this.title}, ${this.row.title}`);
    this.enlarge.setAttribute("aria-label", `Enlarge ${this.title}, ${this.row.title}`);
    this.update();
  }

  get bytes() {
    return Uint8Array.from(atob(this.data.audio), (letter) => letter.charCodeAt(0));
  }

  get url() {
    this.made ??= URL.createObjectURL(new Blob([this.bytes], { type: "audio/flac" }));
    return this.made;
  }

  // The page holds FLAC; decoded at the clip's own rate, its samples are those of the run's WAV.
  async download() {
    const context = new OfflineAudioContext(1, 1, this.data.rate_hz);
    const decoded = await context.decodeAudioData(this.bytes.buffer);
    const url = URL.createObjectURL(encodeWav(decoded.getChannelData(0), this.data.rate_hz));
    const name = `${this.title} ${this.row.title}`.replace(/[^\p{L}\p{N}.]+/gu, "-");
    element("a", { href: url, download: `${name}.wav` }).click();
    setTimeout(() => URL.revokeObjectURL(url), 60_000);
  }

  resize() {
    const isLarge = this.element.classList.toggle("is-large");
    this.enlarge.setAttribute("aria-pressed", String(isLarge));
    this.enlarge.textContent = isLarge ? "Reduce" : "Enlarge";
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
      // Paused, or another clip was chosen, before playback began: not an error.
      if (error.name !== "AbortError") throw error;
    });
    if (previous && previous !== this) previous.update();
  }

  seek(seconds) {
    this.time = Math.max(0, Math.min(seconds, this.data.seconds));
    if (current === this) player.currentTime = this.time;
    this.update();
  }

  // A seek by the user, who wants to see the fields there.
  point(seconds) {
    explorer.reopen();
    this.seek(seconds);
    explorer.show(this, this.time);
  }

  onKey(event) {
    const step = this.data.frames ? 1 / this.rate : 0.1;
    const moves = {
      ArrowLeft: -step, ArrowDown: -step, ArrowRight: step, ArrowUp: step,
      PageDown: -1, PageUp: 1, Home: -Infinity, End: Infinity,
    };
    if (event.key === " " || event.key === "Enter") this.toggle();
    else if (event.key in moves) {
      // From the middle of a frame, so that rounding never skips one.
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
    const parts = [`${seconds.toFixed(1)} s`];
    if (this.data.frames && !isBlind) {
      const { pitch_hz: pitch, energy_db: energy } = this.data.frames;
      const t = this.frameAt(seconds);
      if (pitch) parts.push(pitch[t] === null ? "unvoiced" : `${pitch[t]} Hz`);
      if (energy) parts.push(`${energy[t]} dB`);
    }
    return parts.join(", ");
  }

  // Top: pitch. Below: the spectrum that LSPs and energy describe.
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
    context.drawImage(drawSpectrum(this.data.frames, style("--ink")), 0, top, width, height - top);
    if (!pitch) return;
    context.fillStyle = style("--line");
    context.fillRect(0, top, width, 1);
    context.fillStyle = style("--pitch");
    const step = width / pitch.length;
    const y = (hz) => top - 3 - ((top - 6) * Math.log(hz / 50)) / Math.log(8);
    pitch.forEach((hz, t) => hz && context.fillRect(t * step, y(hz) - 1, Math.max(step, 1.2), 2));
  }
}

const SPECTRUM_BANDS = 64;
const SPECTRUM_RANGE_DB = 45;
// Lifts the high formants, which are far weaker than the low ones, by 6 dB per octave.
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

// A canvas with a pixel per frame and band; in modes whose LSPs are labels, a pixel per frame and field, its level.
function drawSpectrum({ lsp_hz: lsp, energy_db: energy, levels, mode }, ink) {
  const fields = report.modes[mode].fields;
  const bands = lsp ? SPECTRUM_BANDS : fields.length;
  const canvas = element("canvas", { width: levels.length, height: bands });
  const context = canvas.getContext("2d");
  const image = context.createImageData(levels.length, bands);
  const shade = (t, band, share) => (image.data[4 * (band * levels.length + t) + 3] = 255 * Math.max(0, Math.min(1, share)));
  if (lsp) {
    const frames = lsp.map((hz, t) => envelope(hz).map((db) => db + (energy ? energy[t] : 0)));
    // Black is the peak that one frame in twenty exceeds: the sharpest peaks of all would leave the rest too light.
    const peaks = frames.map((powers) => Math.max(...powers)).sort((a, b) => b - a);
    const loudest = peaks[Math.floor(peaks.length / 20)];
    frames.forEach((powers, t) => powers.forEach((db, band) => shade(t, bands - 1 - band, 1 + (db - loudest) / SPECTRUM_RANGE_DB)));
  } else levels.forEach((frame, t) => frame.forEach((level, f) => shade(t, f, level / (fields[f].levels - 1))));
  context.putImageData(image, 0, 0);
  context.globalCompositeOperation = "source-in";
  context.fillStyle = ink;
  context.fillRect(0, 0, levels.length, bands);
  return canvas;
}

// 16-bit mono WAV.
function encodeWav(samples, rate) {
  const view = new DataView(new ArrayBuffer(44 + 2 * samples.length));
  const text = (at, letters) => [...letters].forEach((letter, n) => view.setUint8(at + n, letter.charCodeAt(0)));
  text(0, "RIFF");
  view.setUint32(4, 36 + 2 * samples.length, true);
  text(8, "WAVEfmt ");
  view.setUint32(16, 16, true);
  view.setUint16(20, 1, true);
  view.setUint16(22, 1, true);
  view.setUint32(24, rate, true);
  view.setUint32(28, 2 * rate, true);
  view.setUint16(32, 2, true);
  view.setUint16(34, 16, true);
  text(36, "data");
  view.setUint32(40, 2 * samples.length, true);
  // Chromium divides positive samples by 32767. In browsers that do not, loud samples differ by one level.
  samples.forEach((sample, n) => view.setInt16(44 + 2 * n, Math.round((sample < 0 ? 32768 : 32767) * sample), true));
  return new Blob([view], { type: "audio/wav" });
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
