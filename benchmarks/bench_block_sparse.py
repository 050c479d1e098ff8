"""Time block-sparse attention against dense SDPA and other sparse ways, in interleaved pairs on this machine.

``python benchmarks/bench_block_sparse.py --tokens 8192`` prints medians and ratios and appends them to
``results/block-sparse-attention.jsonl``; no speed when a check is red.
"""

from __future__ import annotations

import statistics
import sys

import torch
from fewstep.kernels.block_sparse_attention import KERNEL, block_sparse_attention
from fewstep.kernels.check import numerics
from side_by_side import Call, Recorder, interleaved, pair_ratio, parser, peak_flops
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention.flex_attention import BlockMask, flex_attention

SPARSE = "block-sparse-attention"


def random_lists(heads: int, query_blocks: int, key_blocks: int, density: float) -> Tensor:
    """As many random blocks for each query block as `density` asks for, at least one."""
    order = torch.rand(1, heads, query_blocks, key_blocks).argsort(-1)
    return order[..., : max(1, round(density * key_blocks))].contiguous()


def flex_mask(query: Tensor, key: Tensor, blocks: Tensor, size: int) -> BlockMask:
    """The lists, all of one length, as FlexAttention takes them."""
    t, n = query.shape[2], key.shape[2]
    counts = torch.full(blocks.shape[:3], blocks.shape[3], dtype=torch.int32, device=blocks.device)
    indices = F.pad(blocks.int(), (0, -(-n // size) - blocks.shape[3]))
    return BlockMask.from_kv_blocks(
        torch.zeros_like(counts), torch.zeros_like(indices), counts, indices, BLOCK_SIZE=size, seq_lengths=(t, n)
    )


def baselines(query: Tensor, key: Tensor, value: Tensor, blocks: Tensor, size: int) -> dict[str, Call]:
    """Other ways to the same output: compiled FlexAttention and, on lists of one length, SDPA on gathered blocks."""
    (b, h, _, d), (g, n) = query.shape, key.shape[1:3]
    mask = flex_mask(query, key, blocks, size)
    compiled = torch.compile(flex_attention, dynamic=True)

    def gathered() -> list[Tensor]:
        rows = query.reshape(-1, 1, size, d)
        keys, values = (x.repeat_interleave(h // g, 1).reshape(b * h * (n // size), -1) for x in (key, value))
        places = (blocks + torch.arange(h, device=blocks.device).view(h, 1, 1) * (n // size)).view(len(rows), -1)
        outputs = []
        for some, at in zip(rows.split(4), places.split(4), strict=True):
            tiles = (x.index_select(0, at.flatten()).view(len(at), 1, -1, d) for x in (keys, values))
            outputs.append(F.scaled_dot_product_attention(some, *tiles))
        return outputs

    return {
        "compiled-flex-attention": lambda: compiled(query, key, value, block_mask=mask, enable_gqa=h != g),
        "gathered-sdpa": gathered,
    }


def main() -> int:
    """Run the benchmark; exit code 1 when the backend is wrong."""
    flags = parser(__doc__)
    flags.add_argument("--tokens", type=int, nargs="+", default=(1024, 4096, 8192))
    flags.add_argument("--density", type=float, nargs="+", default=(0.05, 0.1, 0.2, 0.5, 0.8, 1.0))
    flags.add_argument("--heads", type=int, nargs=3, default=(8, 8, 64), metavar=("QUERY", "KV", "DIM"))
    flags.add_argument("--block", type=int, default=64)
    flags.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    flags.add_argument("--repeats", type=int, default=5)
    flags.add_argument("--baselines", action="store_true", help="also time compiled FlexAttention and gathered SDPA")
    options = flags.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    backend, dtype, size = KERNEL.chosen_backend(device), getattr(torch, options.dtype), options.block
    if not (result := numerics(KERNEL, backend, device)).ok:
        print(f"{backend} is wrong, nothing timed: {result.detail}", file=sys.stderr)
        return 1
    h, g, d = options.heads
    params = {"heads": h, "kv_heads": g, "head_dim": d, "block": size, "repeats": options.repeats, "backend": backend}
    recorder = Recorder(SPARSE, options, device, dtype, params)
    peak = peak_flops(device, dtype)
    print(
        f"{backend} on {device}, {torch.get_num_threads()} threads, {h} heads on {g} of {d}, {options.dtype}, blocks of"
    )
    print(f"{size}; a large matrix product reaches {peak / 1e9:.0f} GFLOP/s")
    print(f"{'tokens':>6}{'density':>8}  {'arm':24}{'median':>10}{'dense/arm':>10}{'of ideal':>9}{'over floor':>11}")
    for tokens in options.tokens:
        shapes = ((1, h, tokens, d), (1, g, tokens, d), (1, g, tokens, d))
        query, key, value = (torch.randn(shape, device=device, dtype=dtype) for shape in shapes)
        for density in options.density:
            blocks = random_lists(h, -(-tokens // size), -(-tokens // size), density).to(device)
            kept = blocks.shape[3] / -(-tokens // size)
            floor = {"dense": 4 * h * tokens**2 * d / peak}
            calls: dict[str, Call] = {
                "dense": lambda q=query, k=key, v=value: F.scaled_dot_product_attention(q, k, v, enable_gqa=h != g),
                SPARSE: lambda q=query, k=key, v=value, b=blocks: block_sparse_attention(
                    q, k, v, b, query_block=size, key_block=size
                ),
            }
            calls |= baselines(query, key, value, blocks, size) if options.baselines and tokens % size == 0 else {}
            times = interleaved(calls, device, options.repeats, warmup=1)
            counts = {}
            for name, seconds in times.items():
                share = 1.0 if name == "dense" else kept
                ratios = [share * a / b for a, b in zip(times["dense"], seconds, strict=True)]
                over = [second / (floor["dense"] * share) for second in seconds]
                counts[name] = [
                    {"share_of_ideal": ratio, "time_over_flops_floor": more}
                    for ratio, more in zip(ratios, over, strict=True)
                ]
                line = f"{tokens:6}{kept:8.3f}  {name:24}{statistics.median(seconds) * 1e3:7.1f} ms"
                line += f"{pair_ratio(times['dense'], seconds):10.2f}{statistics.median(ratios):9.0%}"
                print(f"{line}{statistics.median(over):11.2f}", flush=True)
            recorder.add(times, counts, f"dense-sdpa-{options.dtype}", tokens=tokens, density=kept)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
