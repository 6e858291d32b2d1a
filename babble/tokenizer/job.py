"""The work of `babble tokens`: shards of frames and a voice -> shards of tokens, and the tokenizer that found them."""

import hashlib
import time
from pathlib import Path

import numpy as np
import torch

from babble.cli import config_to_dict
from babble.codec.frames import TOKENS
from babble.data.shards import (
    MANIFEST,
    SHIFTED,
    SPLITS,
    Manifest,
    Segment,
    hash_manifest,
    open_shards,
    read_manifest,
    read_recordings,
    write_manifest,
    write_shards,
)
from babble.files import check_writable, lock, read_json, replacing, write_json
from babble.model.babbler import Babbler
from babble.model.checkpoint import build_model, load_checkpoint
from babble.run_folder import locate_checkpoint
from babble.tokenizer.clusters import assign, find_centres, fit_clusters
from babble.tokenizer.config import OF_TRAINING, TokensConfig
from babble.tokenizer.tokenizer import (
    FILE,
    Tokenizer,
    hidden_states,
    load_tokenizer,
    locate_tokenizer,
    train_encoder,
)

# Clusters are found on every so many frames.
TARGET_STRIDE, FEATURE_STRIDE = 8, 6
ENTRIES_PER_SHARD = 64
# Until the manifest is written: the state of the encoder's training, and the settings of what was begun.
STATE, SETTINGS = ".encoder.pt", ".settings.json"
# Between two lines of the encoder's training.
LINE_SECONDS = 30.0


def make_tokens(config: TokensConfig) -> Manifest:
    """Find tokens and write them as shards, or continue where an earlier call stopped; return their manifest.

    Raises:
        FileNotFoundError, ValueError: unusable shards, voice or tokenizer; the folder holds tokens of other settings.
    """
    assert config.out is not None
    shards, manifest = open_shards(config.shards)
    settings: dict[str, object]
    source: Tokenizer | Babbler
    if config.tokenizer:
        source = load_tokenizer(config.tokenizer)
        settings = {"tokenizer": _hash(locate_tokenizer(config.tokenizer))}
    else:
        assert config.voice is not None
        checkpoint = locate_checkpoint(config.voice)[1]
        source = build_model(load_checkpoint(checkpoint))
        if source.config.tokens:
            raise ValueError(
                f"--voice {config.voice} receives tokens already: name the run that it was continued from, or "
                f"--tokenizer {config.voice}."
            )
        if not manifest.split_frames("train"):
            raise ValueError(f"{shards} has no train split to find clusters in: use an existing one with --tokenizer.")
        settings = {"voice": _hash(checkpoint), **{name: config_to_dict(config)[name] for name in OF_TRAINING}}
    if source.mode != manifest.mode:
        other = f"{config.tokenizer or config.voice} mode {source.mode.name}"
        raise ValueError(f"{shards} has mode {manifest.mode.name}, but {other}.")
    settings["shards"] = hash_manifest(shards)
    found = read_manifest(config.out) if (config.out / MANIFEST).is_file() else None
    started = config.out / SETTINGS
    before = found.settings if found else settings
    if not found and started.is_file():
        before = read_json(started)
    if before != settings:
        raise ValueError(f"{config.out} holds tokens of another voice, other shards or settings: choose another --out.")
    if found:
        print(f"{config.out} is finished already.")
        return found
    check_writable(config.out / MANIFEST, "--out")
    config.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(config.threads)
    # Vanishing gradients are denormal numbers, with which a step takes a CPU eight times as long.
    torch.set_flush_denormal(True)
    with lock(config.out / ".lock", f"{config.out} is being written by another process."):
        write_json(started, settings)
        if isinstance(source, Tokenizer):
            tokenizer = _save(source, config.out)
        else:
            recordings = read_recordings(shards, manifest, "train")
            tokenizer = _train(config, source, [recording.frames for recording in recordings])
        tokens = _write(config.out, shards, manifest, tokenizer, settings)
        for path in (config.out / STATE, started):
            path.unlink(missing_ok=True)
    return tokens


def _hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _train(config: TokensConfig, model: Babbler, recordings: list[np.ndarray]) -> Tokenizer:
    assert config.out is not None
    path = config.out / FILE
    if path.is_file():
        return load_tokenizer(config.out)
    as_tensors = [torch.from_numpy(frames.astype(np.int64)) for frames in recordings]
    print("clustering the hidden states of the voice", flush=True)
    hidden = [hidden_states(model, frames).half() for frames in as_tensors]
    sample = torch.cat([rows[::TARGET_STRIDE] for rows in hidden]).float()
    centres = find_centres(sample, config.encoder.targets, config.seed)
    targets = [assign(rows.float(), centres).numpy() for rows in hidden]
    del hidden, sample
    started = said = time.monotonic()

    def report(step: int, loss: float) -> None:
        nonlocal said
        if time.monotonic() - said < LINE_SECONDS:
            return
        said = time.monotonic()
        seconds = (time.monotonic() - started) / max(1, step) * (config.encoder.steps - step)
        print(
            f"encoder: step {step} of {config.encoder.steps}, loss {loss:.3f}, {seconds / 60:.1f} min left", flush=True
        )

    encoder = train_encoder(config.encoder, model.mode, recordings, targets, config.seed, config.out / STATE, report)
    print("clustering the features of the encoder", flush=True)
    features = torch.cat([encoder.features(frames)[::FEATURE_STRIDE] for frames in as_tensors])
    clusters = fit_clusters(features, config.clusters, config.change_cost, config.seed)
    return _save(Tokenizer(encoder, clusters, model.mode), config.out)


def _save(tokenizer: Tokenizer, out: Path) -> Tokenizer:
    """Write a tokenizer and return it as it is read again, in half precision."""
    with replacing(out / FILE) as temporary:
        torch.save(tokenizer.state(), temporary)
    return load_tokenizer(out)


def _write(out: Path, shards: Path, manifest: Manifest, tokenizer: Tokenizer, settings: dict[str, object]) -> Manifest:
    """Write the tokens of all recordings, and the manifest last."""
    facts, rows = [], []
    for split in (*SPLITS, SHIFTED):
        recordings, tokenized = read_recordings(shards, manifest, split), []
        if recordings:
            print(f"finding the tokens of {len(recordings)} {split} recordings", flush=True)
        for recording in recordings:
            sequence = tokenizer.find_sequence(recording.frames)
            tokenized.append(Segment(recording.recording, recording.first_frame, sequence))
            rows.append(
                {
                    "name": recording.recording,
                    "split": split,
                    "first_frame": recording.first_frame,
                    "frames": len(sequence),
                    "spoken_frames": len(recording.frames),
                }
            )
        facts += write_shards(out, split, tokenized, TOKENS, ENTRIES_PER_SHARD)
    kept = [row for row in rows if row["split"] != SHIFTED]
    tokens = Manifest(TOKENS, settings, kept, facts, [], shifted=[row for row in rows if row["split"] == SHIFTED])
    write_manifest(out, tokens)
    return tokens
