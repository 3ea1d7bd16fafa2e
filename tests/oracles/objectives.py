"""Masks, targets, codebooks, flow and the joint loss (system page, sections 2.2 to 4)."""

import numpy as np

from tests.oracles import network


def masked_count(length, fraction):
    """M_L = max(1, round(fraction L))."""
    return max(1, round(fraction * length))


def span_mask(permutation, length, fraction, span):
    """Masked frames, a set. permutation[s] is the rank of the span that starts at s."""
    order = []
    for frame in range(length):
        rank, start = min(
            (permutation[start], start)
            for start in range(length - span + 1)
            if start <= frame < start + span
        )
        order.append((rank, frame - start, frame))
    return {frame for _, _, frame in sorted(order)[: masked_count(length, fraction)]}


def instance_norm(x):
    """Over time per channel, biased variance; x [frames, channels]."""
    mean = x.mean(0)
    return (x - mean) / np.sqrt(((x - mean) ** 2).mean(0) + 1e-5)


def nearest(target, sums, counts):
    """Index of the codeword s_v / n_v nearest to target [width]."""
    distances = [((target - s / n) ** 2).sum() for s, n in zip(sums, counts, strict=True)]
    return int(np.argmin(distances))


def codebook_update(sums, counts, targets, codes, decay):
    """One codebook; targets [N, width] of the whole global batch with their codes [N]."""
    sums, counts = sums.copy(), counts.copy()
    for v in range(len(sums)):
        own = [target for target, code in zip(targets, codes, strict=True) if code == v]
        if own:
            sums[v] = decay * sums[v] + (1 - decay) * np.sum(own, axis=0)
            counts[v] = decay * counts[v] + (1 - decay) * len(own)
    return sums, counts


def cross_entropy(logits, code):
    """-log softmax(logits)[code]."""
    return np.log(np.exp(logits - logits.max()).sum()) + logits.max() - logits[code]


def joint(config, params, slot, examples):
    """Loss, its parts and what the codebooks are assigned, for one global batch.

    examples: dicts with x [frames, channels] (normalised, valid frames only), mask (a set of
    frames), x0 like x, t, dropped.
    Returns a dict: loss, encoder_loss, decoder_loss (means over masked frames), targets and codes,
    both [K][N].
    """
    encoder, depth, k = params["encoder"], config.encoder.depth, config.teacher.targets
    groups, positions = config.encoder.position_groups, config.encoder.positions
    heads, rotary = config.encoder.heads, "rope" in positions
    sigma = config.decoder.sigma_min
    encoder_sum, decoder_sum, weight = 0.0, 0.0, 0
    all_targets, all_codes = [[] for _ in range(k)], [[] for _ in range(k)]
    for example in examples:
        x, frames = example["x"], len(example["x"])
        masked = sorted(example["mask"])
        weight += len(masked)
        mask = np.isin(np.arange(frames), masked)
        h0 = network.embed(x, mask, encoder, positions, groups)
        streams = []
        if depth:
            streams, _ = network.encoder_layers(h0, encoder["layers"], depth, heads, rotary)
            clean = network.embed(x, np.zeros(frames, bool), encoder, positions, groups)
            _, outputs = network.encoder_layers(clean, slot["teacher"], depth, heads, rotary)
            final = network.layer_norm(streams[-1], encoder["final_norm"])
            for j in range(k):
                target = instance_norm(outputs[depth - k + j])
                logits = final @ params["heads"]["kernel"][j] + params["heads"]["bias"][j]
                sums, counts = (slot["codebooks"][name][j] for name in ("sums", "counts"))
                for frame in masked:
                    code = nearest(target[frame], sums, counts)
                    all_targets[j].append(target[frame])
                    all_codes[j].append(code)
                    encoder_sum += cross_entropy(logits[frame], code) / k
        if config.objective.decoder_weight:
            z = network.condition(h0, streams, params.get("condition"))
            if example["dropped"]:
                z = np.tile(params["decoder"]["null_condition"], (frames, 1))
            x0, t = example["x0"], example["t"]
            x_t = (1 - (1 - sigma) * t) * x0 + t * x
            v = network.decoder(
                x_t,
                z,
                t,
                params["decoder"],
                config.decoder.depth,
                config.decoder.heads,
                config.decoder.time_channels,
            )
            u = x - (1 - sigma) * x0
            decoder_sum += sum(((v[frame] - u[frame]) ** 2).mean() for frame in masked)
    total = encoder_sum + config.objective.decoder_weight * decoder_sum
    return {
        "loss": total / weight,
        "encoder_loss": encoder_sum / weight,
        "decoder_loss": decoder_sum / weight,
        "weight": weight,
        "targets": all_targets,
        "codes": all_codes,
    }
