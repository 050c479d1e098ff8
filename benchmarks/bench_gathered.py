"""Time gathered attention against dense SDPA, SDPA on gathered keys, and reading the selection once.

``python benchmarks/bench_gathered.py`` prints medians and ratios and appends them to
``results/gathered-attention.jsonl``; caches are flushed before each call, no speed when a check is red.
"""

from __future__ import annotations

import statistics
import sys

import torch
from fewstep.kernels.check import numerics
from fewstep.kernels.gathered_attention import KERNEL, gathered_attention
from side_by_side import Recorder, interleaved, pair_ratio, parser
from torch import Tensor
from torch.nn import functional as F

GATHERED = "gathered-attention"


def selection(tokens: int, share: float, singles: int = 64) -> Tensor:
    """Runs of 64 consecutive tokens that make up `share` of all, and `singles` single ones between them."""
    runs = torch.randperm(tokens // 64)[: max(1, int(share * tokens / 64))]
    chosen = torch.zeros(tokens, dtype=torch.bool)
    chosen.view(-1, 64)[runs] = True
    chosen[torch.randperm(tokens)[:singles]] = True
    return chosen.nonzero()[:, 0][None]


def main() -> int:
    """Run the benchmark; exit code 1 when the backend is wrong."""
    flags = parser(__doc__)
    flags.add_argument("--tokens", type=int, nargs="+", default=(8192, 16384, 32768))
    flags.add_argument("--share", type=float, nargs="+", default=(0.05, 0.1, 0.2, 0.5))
    flags.add_argument("--rows", type=int, default=10)
    flags.add_argument("--heads", type=int, nargs=3, default=(8, 8, 64), metavar=("QUERY", "KV", "DIM"))
    flags.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    flags.add_argument("--repeats", type=int, default=40)
    options = flags.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    backend, dtype = KERNEL.chosen_backend(device), getattr(torch, options.dtype)
    if not (result := numerics(KERNEL, backend, device)).ok:
        print(f"{backend} is wrong, nothing timed: {result.detail}", file=sys.stderr)
        return 1
    h, g, d = options.heads
    params = {"heads": h, "kv_heads": g, "head_dim": d, "rows": options.rows, "repeats": options.repeats}
    recorder = Recorder(GATHERED, options, device, dtype, params | {"backend": backend})
    print(f"{backend} on {device}, {torch.get_num_threads()} threads, {h} heads on {g} of {d}, {options.dtype}")
    print(f"{'tokens':>6}{'share':>8}  {'arm':22}{'median':>10}{'dense/arm':>10}{'arm/read once':>14}")
    flush = torch.zeros(16 << 20, device=device)
    for tokens in options.tokens:
        query = torch.randn(1, h, options.rows, d, device=device, dtype=dtype)
        key, value = (torch.randn(1, g, tokens, d, device=device, dtype=dtype) for _ in range(2))
        for share in options.share:
            chosen = selection(tokens, share).to(device)
            words = g * chosen.numel() * d * key.element_size() // 4
            read = tuple(x.view(torch.int32).view(-1)[:words] for x in (key, value))
            calls = {
                "dense": lambda q=query, k=key, v=value: F.scaled_dot_product_attention(q, k, v, enable_gqa=h != g),
                GATHERED: lambda q=query, k=key, v=value, c=chosen: gathered_attention(q, k, v, c),
                "gathered-sdpa": lambda q=query, k=key, v=value, c=chosen[0]: F.scaled_dot_product_attention(
                    q, k.index_select(2, c), v.index_select(2, c), enable_gqa=h != g
                ),
                "read": lambda r=read: (r[0].amax(), r[1].amax()),
            }
            times = interleaved(calls, device, options.repeats, before=lambda: flush.add_(1))
            once = times.pop("read")
            counts = {}
            for name, seconds in times.items():
                counts[name] = (
                    []
                    if name == "dense"
                    else [{"time_over_bytes_floor": a / b} for a, b in zip(seconds, once, strict=True)]
                )
                line = f"{tokens:6}{chosen.numel() / tokens:8.3f}  {name:22}{statistics.median(seconds) * 1e6:7.0f} us"
                print(f"{line}{pair_ratio(times['dense'], seconds):10.2f}{pair_ratio(seconds, once):14.2f}", flush=True)
            counts.pop("dense")
            sizes = {"tokens": tokens, "share": chosen.numel() / tokens}
            recorder.add(times, counts, f"dense-sdpa-{options.dtype}", **sizes)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
