"""Speed of the exported encoder in PyTorch beside transformers' HuBERT of equal geometry.

    python -m benchmarks.export_speed [--depth 12] [--width 768] [--seconds 15.36] [--repeats 9]

Both take the same [batch, frames, width] and go through positions and Transformer layers, in
float32 and without gradients, in turns; the ratio of each turn is one measurement. Needs torch and
transformers alone. Exit status 1: the median ratio is above 1.15.
"""

import argparse
import statistics
import sys
import time

import torch
from transformers import HubertConfig, HubertModel

from uniwav_jax.export.huggingface.configuration_uniwav import UniWavConfig
from uniwav_jax.export.huggingface.modeling_uniwav import UniWavModel

BAR = 1.15
FRAMES_A_SECOND = 50


def main() -> int:
    """Times both and prints medians."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--depth", type=int, default=12)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--seconds", type=float, default=15.36, help="of each utterance")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=9)
    options = parser.parse_args()
    depth, width, heads = options.depth, options.width, options.width // 64
    ours = UniWavModel(
        UniWavConfig(
            channels=width,
            encoder_depth=depth,
            encoder_width=width,
            encoder_heads=heads,
            weights="student",
            targets=0,
            decoder_depth=0,
        )
    ).eval()
    hubert = HubertModel(
        HubertConfig(
            hidden_size=width,
            num_hidden_layers=depth,
            num_attention_heads=heads,
            intermediate_size=4 * width,
            do_stable_layer_norm=True,
            attn_implementation="sdpa",
        )
    ).eval()
    x = torch.randn(options.batch, round(options.seconds * FRAMES_A_SECOND), width)
    valid = torch.ones(x.shape[:2], dtype=torch.bool)
    programs = {
        "exported": lambda: ours(x, valid).last_hidden_state,
        "HuBERT": lambda: hubert.encoder(x, attention_mask=valid).last_hidden_state,
    }
    found = {name: [] for name in programs}
    with torch.inference_mode():
        for repeat in range(options.repeats + 1):
            for name, program in programs.items():
                began = time.perf_counter()
                assert program().shape == x.shape
                if repeat:  # the first one warms up
                    found[name].append(time.perf_counter() - began)
    ratios = [a / b for a, b in zip(found["exported"], found["HuBERT"], strict=True)]
    for name, seconds in found.items():
        print(f"{name:10} median {statistics.median(seconds):.3f} s, least {min(seconds):.3f} s")
    ratio = statistics.median(ratios)
    print(f"ratio      median {ratio:.3f}, {min(ratios):.3f} ... {max(ratios):.3f}; at most {BAR}")
    return int(ratio > BAR)


if __name__ == "__main__":
    sys.exit(main())
