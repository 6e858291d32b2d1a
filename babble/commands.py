"""The commands of `babble`: what each runs, and what its settings are."""

from typing import NamedTuple


class Command(NamedTuple):
    """What one word after `babble` runs.

    Attributes:
        module: what `python -m` would run.
        config: module and class of its settings.
        summary: the line that `babble --help` shows of it.
    """

    module: str
    config: str
    summary: str


COMMANDS = {
    "voice": Command("babble.voice", "babble.voice.VoiceConfig", "make a voice from your own recordings, in minutes"),
    "live": Command("babble.live", "babble.live.LiveConfig", "play a voice in the browser, and change it meanwhile"),
    "play": Command("babble.play", "babble.play.PlayConfig", "play a voice on the speakers"),
    "generate": Command("babble.generate", "babble.generate.GenerateConfig", "write audio of a voice to a file"),
    "preprocess": Command(
        "jobs.preprocess", "jobs.preprocess.config.PreprocessConfig", "recordings to shards of Codec 2 frames"
    ),
    "inspect": Command("jobs.inspect_shards", "jobs.inspect_shards.InspectConfig", "check and describe shards"),
    "tokens": Command(
        "babble.tokens", "babble.tokenizer.config.TokensConfig", "find tokens of speech, a level above frames"
    ),
    "train": Command("babble.train", "babble.training.config.TrainConfig", "train on shards, or resume a run"),
    "evaluate": Command(
        "babble.evaluate", "babble.evaluate.EvaluateConfig", "metrics on held-out speech and of babble"
    ),
    "report": Command("babble.report", "babble.report.ReportConfig", "runs and sweeps on one page"),
    "tune": Command("babble.tune", "babble.tune.TuneConfig", "sweep over settings"),
    "dashboard": Command("babble.dashboard", "babble.dashboard.DashboardConfig", "W&B workspace and report"),
    "export": Command("babble.export", "babble.export.ExportConfig", "the weights of a run in a small folder"),
}
SHELLS = ("bash", "zsh", "tcsh")
