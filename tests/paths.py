"""Where the tests find the repository, its speech, and corpora that may not be on this machine."""

from pathlib import Path

ROOT = Path(__file__).parent.parent
SPEECH = ROOT / "tests" / "speech"
CORPORA = ROOT.parent / "shared" / "corpora"
TALE = CORPORA / "tale-of-two-cities"
MARGOT = CORPORA / "margot"
