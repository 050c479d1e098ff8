"""Cards of core itself, listed through the same hooks as every plug-in."""

from .cards import Card, hookimpl


@hookimpl
def fewstep_kernels():
    return [
        Card(
            name="expert-mlp",
            summary="experts of a mixture on just the pairs of token and expert that are kept",
            target="fewstep.kernels.expert_mlp:KERNEL",
            paper="2511.15690",
        ),
        Card(
            name="block-means",
            summary="mean key of each run of tokens",
            target="fewstep.kernels.block_means:KERNEL",
        ),
        Card(
            name="block-sparse-attention",
            summary="attention of each query block to its own list of key blocks, per head",
            target="fewstep.kernels.block_sparse_attention:KERNEL",
        ),
        Card(
            name="column-mass",
            summary="attention that each key receives from a few query rows: the score of attention sinks",
            target="fewstep.kernels.column_mass:KERNEL",
            paper="2602.02159",
        ),
        Card(
            name="gathered-attention",
            summary="attention of a few query rows to selected keys, without expanding grouped heads",
            target="fewstep.kernels.gathered_attention:KERNEL",
            paper="2602.02159",
        ),
        Card(
            name="causal-depthwise",
            summary="causal 3x3x3 convolution of each channel by itself, with history",
            target="fewstep.kernels.causal_depthwise:KERNEL",
            paper="2602.19161",
        ),
        Card(
            name="rms-silu",
            summary="RMS normalisation over channels and SiLU in one pass",
            target="fewstep.kernels.rms_silu:KERNEL",
        ),
        Card(
            name="upsample-conv",
            summary="nearest-neighbour upsampling and a 3x3 convolution as four 2x2 ones of the small image",
            target="fewstep.kernels.upsample_conv:KERNEL",
        ),
        Card(
            name="match-loss",
            summary="losses between a sample and two clean predictions of it, fused with their gradient",
            target="fewstep.kernels.match_loss:KERNEL",
            paper="2605.30116",
        ),
        Card(
            name="unit-score",
            summary="relevance of key blocks to a local query: unit means, head mean, max over units",
            target="fewstep.kernels.unit_score:KERNEL",
            paper="2508.06447",
        ),
    ]


@hookimpl
def fewstep_recipes():
    return [
        Card(
            name="dmd2",
            summary="distil a Wan model into a few steps: reverse KL, five critic updates for each of the student",
            target="fewstep.train.distillation:DMD2Recipe",
            paper="2405.14867",
            models=("WanTransformer3DModel",),
        )
    ]
