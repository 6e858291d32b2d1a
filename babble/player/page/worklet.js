// In the browser's audio thread: plays blocks in order, and records the microphone.

// Sound is held back until this much is there, at the start and after a gap.
const START_SECONDS = 0.25;
const REPORT_SAMPLES = 256;

class Player extends AudioWorkletProcessor {
  constructor() {
    super();
    this.blocks = [];
    this.offset = 0;
    this.buffered = 0;
    this.played = 0;
    this.gaps = 0;
    this.loudest = 0;
    this.isStarted = false;
    this.sinceReport = 0;
    this.port.onmessage = ({data}) => {
      this.blocks.push(data.samples);
      this.buffered += data.samples.length;
    };
  }

  process(_, outputs) {
    const out = outputs[0][0];
    if (!this.isStarted && this.buffered >= START_SECONDS * sampleRate) this.isStarted = true;
    let n = 0;
    while (this.isStarted && n < out.length) {
      if (!this.blocks.length) {
        this.gaps += 1;
        this.isStarted = false;
        break;
      }
      const block = this.blocks[0];
      const count = Math.min(out.length - n, block.length - this.offset);
      for (let i = 0; i < count; i++) {
        out[n + i] = block[this.offset + i];
        this.loudest = Math.max(this.loudest, Math.abs(out[n + i]));
      }
      n += count;
      this.offset += count;
      if (this.offset === block.length) {
        this.blocks.shift();
        this.offset = 0;
      }
    }
    this.buffered -= n;
    this.played += n;
    this.sinceReport += out.length;
    if (this.sinceReport >= REPORT_SAMPLES) {
      this.sinceReport = 0;
      const {buffered, played, gaps, loudest} = this;
      this.port.postMessage({buffered, played, gaps, loudest});
    }
    return true;
  }
}

class Recorder extends AudioWorkletProcessor {
  process(inputs) {
    if (inputs[0].length) this.port.postMessage(inputs[0][0].slice());
    return true;
  }
}

registerProcessor("player", Player);
registerProcessor("recorder", Recorder);
