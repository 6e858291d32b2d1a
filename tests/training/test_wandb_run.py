"""What a training logs to W&B, read from W&B's own file, and that failures of W&B are harmless."""

import contextlib
import fcntl
import functools
import json
import os
import pty
import re
import select
import shutil
import signal
import struct
import subprocess
import sys
import termios
import time
import types
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import wandb
import yaml

from babble.cli import config_to_dict
from babble.data.config import DataConfig
from babble.evaluate import EvaluateConfig, evaluate
from babble.files import read_json_lines
from babble.model.config import ModelConfig
from babble.reporting.workspace import describe
from babble.run_folder import RunFolder
from babble.train import train
from babble.training.config import ComputeConfig, SamplesConfig, Stage, StopConfig, TrainConfig
from babble.training.samples import STATISTICS
from babble.training.wandb_run import WandbConfig, WandbRun, describe_wandb, open_wandb

GROUPS = ("voicing", "pitch", "energy", "lsp")
LAYERS = ("layer_1", "layer_2", "layer_3")
# The metrics that a training must log.
CURVES = {
    *(
        "train/loss",
        "train/lr",
        "train/stage",
        "train/frames_per_second",
        "train/times_real_time",
        "train/peak_memory_gb",
    ),
    *(f"{split}/bits/{group}" for split in ("train", "val") for group in GROUPS),
    *(f"{split}/error/{group}" for split in ("train", "val") for group in GROUPS),
    *(f"{split}/{figure}" for split in ("train", "val") for figure in ("bits_per_frame", "error_levels")),
    *(f"baseline/bits/{group}/{line}" for group in GROUPS for line in ("unigram", "bigram")),
    *(f"baseline/error_levels/{line}" for line in ("copy", "median")),
    *(f"{norm}/{part}" for norm in ("gradient_norm", "weight_norm") for part in (*LAYERS, "head")),
    *(f"unfrozen/{layer}" for layer in LAYERS),
    *(f"samples/{whose}{statistic}" for whose in ("", "real/") for statistic in STATISTICS),
}
MEDIA = {
    *("samples/progression", "samples/real/progression"),
    *(f"samples/{whose}{prompt}{what}" for whose in ("", "real/") for prompt in (1, 2) for what in ("", "_plot")),
}
ESCAPES = re.compile(rb"\x1b(\][^\x07\x1b]*(\x07|\x1b\\)|\[[0-9;?<>=]*[ -/]*[@-~]|.)")


def _config(shards: Path, runs: Path, name: str, **changes: Any) -> TrainConfig:
    """Three tiny layers that are unfrozen one after another, an epoch each, with frequent samples and metrics."""
    settings: dict[str, Any] = {
        "name": name,
        "recipe": "tiny",
        "runs": runs,
        "data": DataConfig(shards, window_frames=20, batch_size=4, windows_per_epoch=16),
        "model": ModelConfig(num_layers=3, units=8, head="categorical"),
        "unfreezing": (Stage((1,), 1), Stage((1, 2), 1), Stage((1, 2, 3))),
        "stop": StopConfig(epochs=3),
        "samples": SamplesConfig(every_epochs=0, prompts=1, prompt_frames=20, frames=40),
        "log_every_steps": 2,
        "compute": ComputeConfig(accelerator="cpu"),
        "wandb": WandbConfig(mode="offline"),
    }
    return TrainConfig(**(settings | changes))


@pytest.fixture(scope="module")
def offline(speech_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A training with notes that W&B logged offline."""
    run = RunFolder(tmp_path_factory.mktemp("runs") / "offline")
    run.path.mkdir()
    (run.path / "notes.md").write_text("Does it train offline?")
    samples = SamplesConfig(every_epochs=0, prompts=2, prompt_frames=20, frames=40)
    train(_config(speech_shards, run.path.parent, "offline", samples=samples))
    return run


def _wandb_file(run: Path) -> Path:
    (file,) = run.glob("wandb/offline-run-*/run-*.wandb")
    return file


@functools.cache
def _read(file: Path) -> list[dict[str, Any]]:
    """The records in W&B's file, by its own reader."""
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(file)]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return [json.loads(line) for line in printed.splitlines()]


def _records(run: Path, kind: str) -> list[dict[str, Any]]:
    return [record[kind] for record in _read(_wandb_file(run)) if record["type"] == kind]


def _points(run: Path) -> list[dict[str, Any]]:
    return [record["item"] for record in _records(run, "history")]


def test_an_offline_run_holds_every_chart(offline: RunFolder) -> None:
    points = _points(offline.path)
    known = {name.removesuffix("._type") for point in points for name in point}
    assert known >= CURVES | MEDIA
    bits = [point["val/bits_per_frame"] for point in points if "val/bits_per_frame" in point]
    assert len(bits) == 3
    (summary,) = (r["update"] for r in _records(offline.path, "summary") if "best/bits_per_frame" in r["update"])
    assert summary["best/bits_per_frame"] == pytest.approx(min(bits))


def test_an_evaluation_adds_its_metrics_to_the_summary_of_the_run(offline: RunFolder, tmp_path: Path) -> None:
    run = RunFolder(shutil.copytree(offline.path, tmp_path / "run", ignore=shutil.ignore_patterns("offline-run-*")))
    evaluation = evaluate(EvaluateConfig(run=run.path, split="test", babble_seconds=0))
    updates = {name: v for r in _records(run.path, "summary") for name, v in r["update"].items()}
    assert updates["evaluation/test/bits_per_frame"] == evaluation["held_out"]["bits_per_frame"]
    assert "evaluation/test/baseline/bits_per_frame/bigram" in updates
    (record,) = _records(run.path, "run")
    assert record["run_id"] == (offline.path / "wandb_id").read_text()
    assert not record.keys() & {"display_name", "tags", "notes"}


def test_baselines_are_lines_from_the_first_step_to_the_last(offline: RunFolder) -> None:
    baseline = json.loads(offline.baselines.read_text())["bigram baseline"]
    name = "baseline/bits/pitch/bigram"
    line = [(point["trainer/global_step"], point[name]) for point in _points(offline.path) if name in point]
    assert line == [(step, pytest.approx(baseline["bits/pitch"])) for step in (0, 3, 7, 11)]


def test_only_unfrozen_layers_have_a_gradient(offline: RunFolder) -> None:
    rows = [point for point in _points(offline.path) if "train/stage" in point]
    for layer, stage in zip(LAYERS, (1, 2, 3), strict=True):
        for row in rows:
            is_unfrozen = row["train/stage"] >= stage
            assert row[f"unfrozen/{layer}"] == is_unfrozen
            assert (row[f"gradient_norm/{layer}"] > 0) == is_unfrozen
    still = [row["weight_norm/layer_3"] for row in rows if row["train/stage"] < 3]
    assert len(set(still)) == 1
    assert rows[-1]["weight_norm/layer_3"] != still[0]


def test_the_table_of_samples_has_a_row_per_epoch_and_prompt(offline: RunFolder) -> None:
    rows, columns = [], None
    for artifact in _records(offline.path, "artifact"):
        for entry in artifact["manifest"]["contents"]:
            if entry["path"].endswith("samples/samples.table.json"):
                table = json.loads(Path(entry["local_path"]).read_text())
                columns = table["columns"]
                rows += table["data"]
                # Everything is in the run's own folder, for a later `wandb sync`.
                assert Path(entry["local_path"]).is_file()
    assert columns == ["source", "prompt", "audio", "plot", *(t for s in STATISTICS for t in (s, f"{s}, real"))]
    sources = ("real", "epoch-0001", "epoch-0002", "epoch-0003")
    assert {(row[0], row[1]) for row in rows} == {(name, prompt) for name in sources for prompt in (1, 2)}
    statistics = json.loads((offline.samples / "epoch-0002" / "statistics.json").read_text())
    real = json.loads((offline.samples / "real" / "statistics.json").read_text())
    (row,) = {json.dumps(row) for row in rows if row[:2] == ["epoch-0002", 2]}
    _, _, audio, plot, change, real_change, *_ = json.loads(row)
    assert (audio["_type"], plot["_type"]) == ("audio-file", "image-file")
    assert (change, real_change) == (statistics[1]["change_levels"], real[1]["change_levels"])


def test_runs_have_group_tags_notes_settings_and_corpus(offline: RunFolder, speech_shards: Path) -> None:
    run = _records(offline.path, "run")[-1]
    assert (run["display_name"], run["run_group"], run["job_type"]) == ("offline", "tiny", "train")
    assert set(run["tags"]) == {"lstm", "categorical", "mode 1300"}
    assert run["notes"] == "Does it train offline?"
    settings = _records(offline.path, "run")[0]["config"]["update"]
    assert (settings["model"]["units"], settings["mode"]) == (8, "1300")
    kinds = {artifact["type"]: artifact["name"] for artifact in _records(offline.path, "artifact")}
    assert kinds["dataset"] == f"corpus-{speech_shards.name}"
    assert "model" not in kinds, "the best checkpoint is only logged online"


def _find_keys(panel: dict[str, Any]) -> set[str]:
    """The metrics, media and tables that a panel shows."""
    config = panel["config"]
    if panel["viewType"] == "Weave":
        return set(re.findall(r"samples/\w+", json.dumps(config)))
    columns = [column["accessor"] for column in config.get("columns", ())]
    named = {config.get("xAxis"), config.get("targetKey"), *config.get("metrics", ()), *config.get("mediaKeys", ())}
    return {*named, *(accessor.removeprefix("summary:") for accessor in columns)} - {None}


def test_every_panel_names_what_a_training_logs(offline: RunFolder) -> None:
    known = {name.partition("._")[0] for point in _points(offline.path) for name in point}
    known |= {name for record in _records(offline.path, "summary") for name in record["update"]}
    settings = _records(offline.path, "run")[0]["config"]["update"]
    sections = describe("us", "babble")["workspace"]["spec"]["section"]["panelBankConfig"]["sections"]
    keys = [key for section in sections for panel in section["panels"] for key in _find_keys(panel)]
    assert "samples/samples" in keys
    for key in keys:
        if key.startswith("config:"):
            part, _, setting = key.removeprefix("config:").partition(".value")
            assert setting.removeprefix(".") in settings[part] if setting else part in settings, key
        else:
            assert key in known, key


def test_an_offline_run_can_be_synced(offline: RunFolder) -> None:
    command = [sys.executable, "-m", "wandb", "sync", "--dry-run", str(_wandb_file(offline.path).parent)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0
    assert "Would sync 1 run" in done.stderr + done.stdout


def test_the_terminal_viewer_shows_an_offline_run(offline: RunFolder, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "wandb", "leet", str(_wandb_file(offline.path))]
    process, terminal = pty.fork()
    if process == 0:
        os.execve(command[0], command, os.environ | {"TERM": "xterm-256color", "HOME": str(tmp_path)})
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 200, 0, 0))
    # It redraws only what has changed, so long texts arrive in parts: a short one of each panel; charts go by name.
    wanted = [b"Metrics [1-", b"baseline", b"Does it train offline?"]
    shown, end = b"", time.monotonic() + 60
    try:
        while time.monotonic() < end and not all(word in ESCAPES.sub(b"", shown) for word in wanted):
            if select.select([terminal], [], [], 0.2)[0]:
                shown += os.read(terminal, 1 << 16)
        assert [word for word in wanted if word not in ESCAPES.sub(b"", shown)] == []
        os.write(terminal, b"q")
        code = _await_exit(process, terminal)
        assert code == 0
    finally:
        os.close(terminal)


def _await_exit(process: int, terminal: int) -> int | None:
    end = time.monotonic() + 20
    while time.monotonic() < end:
        if select.select([terminal], [], [], 0.1)[0]:
            # An error means that the other end is closed.
            with contextlib.suppress(OSError):
                os.read(terminal, 1 << 16)
        ended, status = os.waitpid(process, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    return None


def _command(folder: Path, config: TrainConfig, before: str = "pass") -> list[str]:
    path = folder / "train.yaml"
    path.write_text(yaml.safe_dump(config_to_dict(config)))
    code = f"import babble.training.wandb_run, babble.train; {before}; babble.train.main()"
    return [sys.executable, "-c", code, "--config", str(path)]


def _own_environment(**more: str) -> dict[str, str]:
    """The environment without the W&B process of the trainings in this process."""
    return {key: value for key, value in os.environ.items() if key != "WANDB_SERVICE"} | more


def _assert_complete(run: RunFolder) -> None:
    assert json.loads(run.finished.read_text())["steps"] == 40
    assert set(range(1, 40, 2)) <= {row["step"] for row in read_json_lines(run.metrics)}
    assert (run.samples / "epoch-0010" / "1.wav").is_file()
    assert run.checkpoint("best").is_file()


def test_if_the_server_does_not_answer_a_training_is_logged_offline(speech_shards: Path, tmp_path: Path) -> None:
    config = _config(
        speech_shards, tmp_path, "unreachable", stop=StopConfig(epochs=10), wandb=WandbConfig(mode="online")
    )
    environment = _own_environment(WANDB_BASE_URL="http://127.0.0.1:9", WANDB_API_KEY=40 * "0")
    command = _command(tmp_path, config, "babble.training.wandb_run.OPEN_SECONDS = 3.0")
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("W&B can't be reached") == 1
    assert "  W&B        offline; to send it later: wandb sync" in done.stdout
    assert "Traceback" not in done.stderr
    _assert_complete(RunFolder(tmp_path / "unreachable"))
    # For a later `wandb sync`.
    assert {name for point in _points(tmp_path / "unreachable") for name in point} >= CURVES


def _children(pid: int, name: str) -> list[int]:
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            words, rest = stat.read_text().rsplit(")", 1)
        except OSError:
            continue
        if rest.split()[1] == str(pid) and name in words:
            found.append(int(stat.parent.name))
    return found


def test_if_wandbs_process_is_killed_the_training_ends_normally(speech_shards: Path, tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "killed")
    config = _config(speech_shards, tmp_path, "killed", stop=StopConfig(epochs=10), unfreezing=())
    with subprocess.Popen(
        _command(tmp_path, config),
        env=_own_environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        while process.poll() is None and not (run.metrics.is_file() and "val/" in run.metrics.read_text()):
            time.sleep(0.01)
        (core,) = _children(process.pid, "wandb-core")
        os.kill(core, signal.SIGKILL)
        printed = process.communicate()[1]
    assert process.returncode == 0, printed
    assert printed.count("W&B failed") == 1
    assert "Traceback" not in printed
    _assert_complete(run)


class _Broken:
    """A run of W&B whose every method fails, each with its own message."""

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError(f"{name} is broken\nand a second line")


def test_a_failure_is_reported_once_in_one_line(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    broken = WandbRun(_Broken(), is_online=False)
    broken.log({"train/loss": 1.0})
    broken.log_samples("real", 0, tmp_path, [], [])
    broken.summarize({"best/bits_per_frame": 1.0})
    broken.log_file(tmp_path, "x", "model")
    broken.close("notes")
    printed = capfd.readouterr().err.splitlines()
    assert printed == ["W&B failed (log is broken): its curves end here. The run folder has everything."]


def test_the_best_checkpoint_is_logged_online(
    speech_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(WandbRun, "is_online", property(lambda self: True, lambda self, value: None), raising=False)
    train(_config(speech_shards, tmp_path, "sent", stop=StopConfig(epochs=1), unfreezing=()))
    (model,) = [artifact for artifact in _records(tmp_path / "sent", "artifact") if artifact["type"] == "model"]
    (entry,) = model["manifest"]["contents"]
    assert model["name"] == "sent-best"
    # The file itself, not a copy.
    assert Path(entry["local_path"]) == RunFolder(tmp_path / "sent").checkpoint("best")


def test_wandb_mode_disabled_means_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert open_wandb(WandbConfig(), tmp_path, "x", {}, job_type="train") is None
    assert list(tmp_path.iterdir()) == []
    assert describe_wandb(None, tmp_path) == "off"
    # A setting overrides the environment.
    assert WandbConfig(mode="offline").find_mode() == "offline"


def test_a_key_for_the_server_that_wandb_uses_counts(tmp_path: Path) -> None:
    netrc, settings = tmp_path / "netrc", tmp_path / "config" / "settings"
    settings.parent.mkdir()
    server = "https://wandb.example.com:8080"
    own = {key: value for key, value in os.environ.items() if not key.startswith("WANDB_")}
    own |= {"NETRC": str(netrc), "WANDB_CONFIG_DIR": str(settings.parent)}

    def find_mode(host: str, **variables: str) -> str:
        netrc.write_text(f"machine {host} login user password {40 * 'a'}\n")
        netrc.chmod(0o600)
        code = "from babble.training.wandb_run import WandbConfig; print(WandbConfig().find_mode())"
        done = subprocess.run([sys.executable, "-c", code], env=own | variables, capture_output=True, text=True)
        return done.stdout.strip()

    assert find_mode("wandb.example.com:8080") == "offline"
    assert find_mode("wandb.example.com:8080", WANDB_BASE_URL=server) == "online"
    assert find_mode(urlsplit(wandb.Settings().base_url).netloc) == "online"
    # As `wandb login --host` leaves it.
    settings.write_text(f"[default]\nbase_url = {server}\n")
    assert find_mode("wandb.example.com:8080") == "online"


def test_the_start_table_has_the_url_of_an_online_run(tmp_path: Path) -> None:
    class Online:
        url = "https://wandb.example.com/us/babble/runs/1"

    described = describe_wandb(WandbRun(Online(), is_online=True), tmp_path)
    assert described == "online, https://wandb.example.com/us/babble/runs/1"


def test_console_lines_are_in_the_logs_tab(offline: RunFolder) -> None:
    lines = "".join(record["line"] for record in _records(offline.path, "output_raw"))
    assert f"{offline.path}: new run" in lines
    assert "W&B        offline" in lines
    assert "epoch 3/3, stage 3, step 12" in lines


def test_any_name_of_a_folder_becomes_the_name_of_an_artifact(tmp_path: Path) -> None:
    sent: list[Any] = []
    wandb = WandbRun(types.SimpleNamespace(log_artifact=sent.append), is_online=False)
    path = tmp_path / "manifest.json"
    path.touch()
    wandb.log_file(path, "corpus-Mein H\u00f6rbuch (1.5)" + 200 * "x", "dataset")
    assert not wandb.is_lost
    assert sent[0].name.startswith("corpus-Mein-H-rbuch--1.5-xxx")


def test_the_command_to_sync_is_quoted() -> None:
    run = WandbRun(types.SimpleNamespace(), is_online=False)
    assert describe_wandb(run, Path("runs/Mein Lauf")).endswith("wandb sync 'runs/Mein Lauf/wandb'/offline-run-*")
