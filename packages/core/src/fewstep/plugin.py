"""What core itself lists, through the same hooks as every plug-in."""

from .cards import Card, hookimpl


@hookimpl
def fewstep_kernels():
    return [
        Card(
            name="unit-score",
            summary="relevance of key blocks to a local query: unit means, head mean, max over units",
            target="fewstep.kernels.unit_score:KERNEL",
            paper="2508.06447",
        )
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
