// The page of `babble live`: asks for sound block by block, plays it, draws it, and sends what the listener changes.

const get = id => document.getElementById(id);
const TARGET_SECONDS = 0.3;      // More sound is asked for when less is buffered: changes are heard that much later.
const SECONDS_SHOWN = 8;
const MAX_RECORDING_SECONDS = 20;
const SLIDERS = {
  pitch: {label: "Pitch, semitones", min: -12, max: 12, step: 0.5, value: 0,
          edit: v => v && `pitch=scale:${(2 ** (v / 12)).toFixed(4)}`},
  energy: {label: "Energy, dB", min: -12, max: 12, step: 1, value: 0,
           edit: v => v && `energy=${v > 0 ? "+" : ""}${v}dB`},
  lsp: {label: "Spectrum, %", min: -25, max: 25, step: 1, value: 0, edit: v => v && `lsp=scale:${1 + v / 100}`},
};
const SAMPLING = {
  temperature: {label: "Temperature", min: 0.1, max: 1.6, step: 0.05, value: 1},
  top_p: {label: "Top-p", min: 0.3, max: 1, step: 0.01, value: 1},
  min_p: {label: "Min-p", min: 0, max: 0.3, step: 0.005, value: 0},
};
const TOKENS = {label: "What is said", min: 0.1, max: 1.2, step: 0.05};
const GROUP_NAMES = {voicing: "Voicing", pitch: "Pitch", energy: "Energy", lsp: "Spectrum"};

let about = {};                  // What the server said about the session.
let socket;
let context, player, gain, analyser;
let asked = 0;                   // Blocks that were asked for and have not come.
let isPlaying = false;
let heard = {buffered: 0, played: 0, gaps: 0, loudest: 0};
let queued = [];                 // Values to draw, with the sample at which they are heard.
let received = 0;                // Samples.
let sendTimer;
const controls = {};             // Sliders by "temperature/pitch" or "edit/pitch".

// ---- connection

function connect() {
  socket = new WebSocket(new URL("play", location.href).href.replace(/^http/, "ws"));
  socket.binaryType = "arraybuffer";
  socket.onmessage = ({data}) => typeof data === "string" ? onAbout(JSON.parse(data)) : onBlock(data);
  socket.onclose = ({reason}) => {
    stop();
    get("play").disabled = true;
    say(`Disconnected${reason ? `: ${reason}` : ""}. Reload the page to start again.`, true);
  };
}

const send = message => socket.readyState === WebSocket.OPEN && socket.send(JSON.stringify(message));

function onAbout(message) {
  if (message.error) return say(message.error, true);
  const isNew = message.mode !== about.mode || message.token_temperature !== about.token_temperature || String(message.groups) !== String(about.groups);
  about = message;
  if (isNew) { makeControls(); change(); }   // The server still has the settings of the old controls.
  get("about").textContent = `${about.voice}, Codec 2 mode ${about.mode}`;
  get("prompt").textContent = `Continues: ${about.prompt}. You can drop a file anywhere on this page.`;
  get("voice").replaceChildren(...about.voices.map(name => new Option(name, name, false, name === about.voice)));
  get("save").href = `save/${about.session}`;
  get("random").disabled = !about.prompts.includes("random");
  get("random").title = get("random").disabled ? "This voice comes without its recordings." : "";
  get("play").disabled = false;
}

function onBlock(data) {
  asked -= 1;
  const length = new DataView(data).getUint32(0, true);
  const values = JSON.parse(new TextDecoder().decode(new Uint8Array(data, 4, length)));
  const pcm = new Int16Array(data, 4 + length);
  if (!player) return;
  const frames = Math.max(values.pitch.length, values.energy.length);
  for (let i = 0; i < frames; i++) {
    queued.push({at: received + pcm.length * i / frames, pitch: values.pitch[i], energy: values.energy[i]});
  }
  received += pcm.length;
  player.port.postMessage({samples: Float32Array.from(pcm, v => v / 32768)});
  about.speed = values.speed;
  if (values.alarms.length) say(`Restarted after ${values.alarms.join(", ")}.`);
  ask();
}

function ask() {
  if (!isPlaying) return;
  const block = about.block_seconds * about.rate_hz;
  while (received - heard.played + asked * block < TARGET_SECONDS * about.rate_hz) {
    asked += 1;
    send({more: true});
  }
}

// ---- playing

async function openAudio() {
  context = new AudioContext({sampleRate: about.rate_hz});
  await context.audioWorklet.addModule("worklet.js");
  player = new AudioWorkletNode(context, "player", {outputChannelCount: [1]});
  gain = context.createGain();
  analyser = context.createAnalyser();
  analyser.fftSize = 256;
  analyser.smoothingTimeConstant = 0;
  player.connect(analyser);
  player.connect(gain).connect(context.destination);
  gain.gain.value = get("volume").value;
  player.port.onmessage = ({data}) => {
    if (data.gaps > heard.gaps) {
      say(`Falls behind: generates ${about.speed} times as fast as it plays; other programs may be in the way.`, true);
    }
    heard = data;
    ask();
  };
}

async function play() {
  if (!context) await openAudio();
  await context.resume();
  isPlaying = true;
  get("play").textContent = "Pause";
  say("Playing.");
  ask();
  requestAnimationFrame(draw);
}

function stop() {
  isPlaying = false;
  get("play").textContent = "Play";
  context?.suspend();
}

function toggle() {
  if (get("play").disabled) return;
  if (isPlaying) { stop(); say("Paused."); } else play();
}

function say(text, isWarning = false) {
  get("status").textContent = text;
  get("status").classList.toggle("warn", isWarning);
}

// ---- what the listener changes

function makeSlider(key, label, {min, max, step, value}, title = label) {
  const row = document.createElement("label");
  const input = Object.assign(document.createElement("input"), {type: "range", min, max, step, value});
  const shown = document.createElement("output");
  row.append(label, input, shown);
  input.dataset.default = value;
  input.setAttribute("aria-label", title);
  input.id = key.replace("/", "-");
  const show = () => { shown.textContent = Number(input.value); };
  input.addEventListener("input", () => { show(); change(); });
  show();
  controls[key] = {input, show};
  return row;
}

function makeControls() {
  for (const key of Object.keys(controls)) delete controls[key];
  const edits = Object.entries(SLIDERS).filter(([group]) => about.edits.includes(group));
  get("edits").replaceChildren(...edits.map(([group, slider]) => makeSlider(`edit/${group}`, slider.label, slider)));
  if (about.edits.includes("voicing")) {
    const row = document.createElement("label");
    const input = document.createElement("select");
    input.append(new Option("as generated", ""), new Option("off: a whisper", "off"), new Option("on: a buzz", "on"));
    input.dataset.default = "";
    input.id = "edit-voicing";
    input.addEventListener("change", change);
    row.append("Voicing", input);
    controls["edit/voicing"] = {input, show: () => {}};
    get("edits").append(row);
  }
  const said = document.createElement("div");
  said.className = "sliders";
  if (about.token_temperature !== null) {
    const slider = {...TOKENS, value: about.token_temperature};
    said.append(makeSlider("tokens", TOKENS.label, slider, "Temperature of what is said"));
  }
  const settings = about.groups.length ? Object.entries(SAMPLING) : [];
  get("sampling").replaceChildren(said, ...settings.flatMap(([key, slider]) => {
    const heading = Object.assign(document.createElement("h3"), {textContent: slider.label});
    const rows = Object.assign(document.createElement("div"), {className: "sliders"});
    rows.append(...about.groups.map(group => makeSlider(
      `${key}/${group}`, GROUP_NAMES[group], slider, `${slider.label} of ${GROUP_NAMES[group].toLowerCase()}`)));
    return [heading, rows];
  }));
}

function readSettings() {
  const settings = {guard: get("guard").checked};
  for (const key of Object.keys(SAMPLING)) {
    if (about.groups.length) {
      settings[key] = about.groups.map(group => `${group}=${controls[`${key}/${group}`].input.value}`).join(",");
    }
  }
  if (controls.tokens) settings.token_temperature = Number(controls.tokens.input.value);
  const edits = Object.entries(SLIDERS).filter(([group]) => controls[`edit/${group}`])
    .map(([group, slider]) => slider.edit(Number(controls[`edit/${group}`].input.value)));
  const voicing = controls["edit/voicing"]?.input.value;
  settings.what_if = [...edits, voicing && `voicing=${voicing}`].filter(Boolean).join(",");
  return settings;
}

// Many events of one movement make a few messages.
function change() {
  sendTimer ??= setTimeout(() => { sendTimer = undefined; send({settings: readSettings()}); }, 50);
}

async function upload(blob, name) {
  say(`Reading ${name} …`);
  const answer = await fetch(`prompt/${about.session}?name=${encodeURIComponent(name)}`, {method: "POST", body: blob})
    .catch(() => undefined);
  const message = answer ? await answer.json() : {error: `${name} could not be sent; it may be too large`};
  if (message.error) return say(message.error, true);
  onAbout({...message, session: about.session});
  say(`Continues ${name}.`);
  if (!isPlaying) play();
}

// ---- microphone

let recording;

async function toggleMicrophone() {
  if (recording) return recording.stop();
  // Another click, while the browser asks for permission, would open a second stream.
  get("microphone").disabled = true;
  await record().catch(error => say(`No microphone: ${error.message}`, true));
  get("microphone").disabled = false;
}

async function record() {
  const stream = await navigator.mediaDevices.getUserMedia({audio: true});
  if (isPlaying) toggle();
  const input = new AudioContext();
  await input.audioWorklet.addModule("worklet.js");
  const recorder = new AudioWorkletNode(input, "recorder", {numberOfOutputs: 0});
  const parts = [];
  recorder.port.onmessage = ({data}) => parts.push(data);
  input.createMediaStreamSource(stream).connect(recorder);
  get("microphone").setAttribute("aria-pressed", "true");
  get("microphone").textContent = "Stop, and continue it";
  say("Recording …");
  const timer = setTimeout(() => recording.stop(), MAX_RECORDING_SECONDS * 1000);
  recording = {
    async stop() {
      recording = undefined;
      clearTimeout(timer);
      stream.getTracks().forEach(track => track.stop());
      await input.close();
      get("microphone").setAttribute("aria-pressed", "false");
      get("microphone").textContent = "Microphone";
      upload(makeWav(parts, input.sampleRate), "the microphone");
    },
  };
}

function makeWav(parts, rate) {
  const count = parts.reduce((sum, part) => sum + part.length, 0);
  const view = new DataView(new ArrayBuffer(44 + 2 * count));
  const text = (at, letters) => [...letters].forEach((letter, i) => view.setUint8(at + i, letter.charCodeAt(0)));
  text(0, "RIFF"); view.setUint32(4, 36 + 2 * count, true); text(8, "WAVEfmt ");
  view.setUint32(16, 16, true); view.setUint16(20, 1, true); view.setUint16(22, 1, true);
  view.setUint32(24, rate, true); view.setUint32(28, 2 * rate, true);
  view.setUint16(32, 2, true); view.setUint16(34, 16, true);
  text(36, "data"); view.setUint32(40, 2 * count, true);
  let at = 44;
  for (const part of parts) {
    for (const v of part) { view.setInt16(at, Math.max(-1, Math.min(1, v)) * 32767, true); at += 2; }
  }
  return new Blob([view], {type: "audio/wav"});
}

// ---- display

let drawnAt = 0;
let carry = 0;

function scroll(canvas, pixels) {
  const pen = canvas.getContext("2d");
  pen.globalCompositeOperation = "copy";
  pen.drawImage(canvas, -pixels, 0);
  pen.globalCompositeOperation = "source-over";
  pen.clearRect(canvas.width - pixels, 0, pixels, canvas.height);
  return pen;
}

function draw() {
  if (!isPlaying) return;
  requestAnimationFrame(draw);
  const perSample = get("pitch").width / (SECONDS_SHOWN * about.rate_hz);
  carry += (heard.played - drawnAt) * perSample;
  drawnAt = heard.played;
  const pixels = Math.floor(carry);
  if (!pixels) return;
  carry -= pixels;
  let latest;
  while (queued.length && queued[0].at <= heard.played) {
    latest = queued.shift();
    globalThis.babble.values.push(latest);
    if (globalThis.babble.values.length > 1000) globalThis.babble.values.shift();
  }
  const colour = getComputedStyle(document.body).getPropertyValue("--accent");
  const marks = [
    ["pitch", latest?.pitch ? Math.log2(latest.pitch / 50) / 3 : undefined],
    ["energy", latest?.energy === undefined ? undefined : (latest.energy + 10) / 50],
  ];
  for (const [id, height] of marks) {
    const canvas = get(id), pen = scroll(canvas, pixels);
    if (height === undefined) continue;
    pen.fillStyle = colour;
    pen.fillRect(canvas.width - pixels, Math.round((1 - height) * (canvas.height - 3)), pixels, 3);
  }
  const levels = new Uint8Array(analyser.frequencyBinCount);
  analyser.getByteFrequencyData(levels);
  const canvas = get("spectrum"), pen = scroll(canvas, pixels), high = canvas.height / levels.length;
  for (let i = 0; i < levels.length; i++) {
    pen.globalAlpha = levels[i] / 255;
    pen.fillStyle = colour;
    pen.fillRect(canvas.width - pixels, canvas.height - (i + 1) * high, pixels, high + 0.5);
  }
  pen.globalAlpha = 1;
}

// ---- events

get("play").addEventListener("click", toggle);
get("volume").addEventListener("input", () => { if (gain) gain.gain.value = get("volume").value; });
get("voice").addEventListener("change", () => send({voice: get("voice").value}));
get("guard").addEventListener("change", change);
get("random").addEventListener("click", () => send({prompt: "random"}));
get("silence").addEventListener("click", () => send({prompt: "silence"}));
get("microphone").addEventListener("click", toggleMicrophone);
get("file").addEventListener("change", ({target}) => {
  if (target.files.length) upload(target.files[0], target.files[0].name);
  target.value = "";
});
get("reset").addEventListener("click", () => {
  for (const {input, show} of Object.values(controls)) { input.value = input.dataset.default; show(); }
  change();
});
document.addEventListener("keydown", event => {
  if (event.code === "Space" && !["INPUT", "SELECT", "BUTTON", "A"].includes(event.target.tagName)) {
    event.preventDefault();
    toggle();
  }
});
document.addEventListener("dragover", event => { event.preventDefault(); document.body.classList.add("dropping"); });
document.addEventListener("dragleave", () => document.body.classList.remove("dropping"));
document.addEventListener("drop", event => {
  event.preventDefault();
  document.body.classList.remove("dropping");
  if (event.dataTransfer.files.length) upload(event.dataTransfer.files[0], event.dataTransfer.files[0].name);
});
// For tests: what the audio thread counted, and the pitch and energy that were heard at which sample.
globalThis.babble = {get heard() { return heard; }, get about() { return about; }, values: []};
connect();
