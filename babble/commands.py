"""The commands of `babble`: what each runs, and what its settings are."""

from typing import NamedTuple


class Command(NamedTuple):
    """What one word after `babble` runs.

    Attributes:
        module: what `python -m` would run.
        config: module and class of its settings.
        summary: what it does, as `babble --help` and README.md show it.
    """

    module: str
    config: str
    summary: str


COMMANDS = {
    "voice": Command("babble.voice", "babble.voice.VoiceConfig", "make a voice from your own recordings"),
    "live": Command(
        "babble.live", "babble.live.LiveConfig", "play a voice in the browser and change it while it plays"
    ),
    "play": Command("babble.play", "babble.play.PlayConfig", "play a voice on the speakers"),
    "generate": Command("babble.generate", "babble.generate.GenerateConfig", "write generated speech to a file"),
    "preprocess": Command(
        "jobs.preprocess",
        "jobs.preprocess.config.PreprocessConfig",
        "encode recordings as shards of Codec 2 frames",
    ),
    "inspect": Command("jobs.inspect_shards", "jobs.inspect_shards.InspectConfig", "check and describe shards"),
    "tokens": Command(
        "babble.tokens", "babble.tokenizer.config.TokensConfig", "find tokens, classes of sound, in shards"
    ),
    "train": Command("babble.train", "babble.training.config.TrainConfig", "train on shards, or resume a run"),
    "evaluate": Command(
        "babble.evaluate",
        "babble.evaluate.EvaluateConfig",
        "compute metrics of a run on held-out and generated speech",
    ),
    "report": Command("babble.report", "babble.report.ReportConfig", "show runs and sweeps on one page"),
    "tune": Command("babble.tune", "babble.tune.TuneConfig", "run a sweep over settings"),
    "dashboard": Command("babble.dashboard", "babble.dashboard.DashboardConfig", "create a W&B workspace and report"),
    "export": Command("babble.export", "babble.export.ExportConfig", "write the weights of a run to a small folder"),
}
SHELLS = ("bash", "zsh", "tcsh")
