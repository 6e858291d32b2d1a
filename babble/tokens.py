r"""Find tokens of speech without text: classes of sound, a level above the frame.

    babble tokens --shards shards/tale --voice runs/tale --out shards/tale-tokens
    babble train --config tokens --data.shards shards/tale-tokens --name tale-tokens
    babble train --config words --data.shards shards/tale --data.tokens shards/tale-tokens --init-from runs/tale \
        --token-model runs/tale-tokens --name tale-words

1. The hidden states of a trained network, the voice, are clustered: the targets.
2. An encoder learns to predict the target of masked frames from those around them (tokenizer/encoder.py).
3. Its features are clustered again, and each recording is cut into segments of one cluster (tokenizer/clusters.py):
   its tokens, each with a duration.
4. OUT holds the tokens as shards of their own mode, and the tokenizer.

A network trained on the tokens then predicts their sequence; the frame model, given the tokens, generates the frames.
After a stop, the same command continues.

To find the tokens of other recordings, or of shifted ones, use an existing tokenizer:

    babble tokens --shards shards/more --tokenizer shards/tale-tokens --out shards/more-tokens
"""

import shlex

from babble.cli import run_command
from babble.tokenizer.config import TokensConfig


def _run(config: TokensConfig) -> None:
    # Imported here: torch takes seconds, which --help and a refused setting need not wait for.
    from babble.data.shards import open_shards
    from babble.tokenizer.job import make_tokens

    manifest = make_tokens(config)
    num_tokens, num_frames = (sum(row[key] for row in manifest.recordings) for key in ("frames", "spoken_frames"))
    frames_per_second = open_shards(config.shards)[1].mode.frames_per_second
    print(f"{config.out}: {num_tokens * frames_per_second / num_frames:.1f} tokens per second")
    print(f"next: babble train --config tokens --data.shards {shlex.quote(str(config.out))} --name NAME")


def main() -> None:
    """Run `babble tokens`."""
    run_command(TokensConfig, _run, "babble tokens")


if __name__ == "__main__":
    main()
