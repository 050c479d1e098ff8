"""Cards of core itself, listed through the same hooks as every plug-in."""

from .cards import Card, hookimpl


@hookimpl
def fewstep_kernels():
    return [
        Card(
            name="expert-mlp",
            summary="experts of a mixture on just the pairs of token and expert that are kept",
            target="fewstep.kernels.expert_mlp:KERNEL",
        ),
        Card(
            name="block-means",
            summary="mean of each run of consecutive tokens",
            target="fewstep.kernels.block_means:KERNEL",
        ),
        Card(
            name="block-sparse-attention",
            summary="attention of each query block to its own list of key blocks, per head",
            target="fewstep.kernels.block_sparse_attention:KERNEL",
        ),
        Card(
            name="gathered-attention",
            summary="attention of a few query rows to selected keys, without expanding grouped heads",
            target="fewstep.kernels.gathered_attention:KERNEL",
        ),
        Card(
            name="causal-depthwise",
            summary="causal 3x3x3 convolution of each channel by itself, with history",
            target="fewstep.kernels.causal_depthwise:KERNEL",
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
            name="mean-abs-difference",
            summary="mean absolute difference of two tensors for each sample, in one pass",
            target="fewstep.kernels.mean_abs_difference:KERNEL",
        ),
        Card(
            name="weighted-residuals",
            summary="mean squared distances to two references, fused with the gradient of their weighted sum",
            target="fewstep.kernels.weighted_residuals:KERNEL",
        ),
        Card(
            name="token-relation",
            summary="difference of token similarities within a frame from a reference's, fused with its gradient",
            target="fewstep.kernels.token_relation:KERNEL",
        ),
        Card(
            name="unit-score",
            summary="score of key blocks for one query: unit means, head mean, max over units",
            target="fewstep.kernels.unit_score:KERNEL",
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
