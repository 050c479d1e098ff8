"""Cards of Flash-VAED."""

from fewstep.cards import Card, hookimpl


@hookimpl
def fewstep_methods():
    return [
        Card(
            name="flash-vaed",
            summary="replace the decoder of a Wan video VAE by a pruned and distilled one",
            target="fewstep_flash_vaed.method:FlashVAED",
            paper="2602.19161",
            models=("AutoencoderKLWan", "WanPipeline"),
            run="fewstep_flash_vaed.roundtrip:RoundTrip",
            fit="fewstep_flash_vaed.fit:Prune",
            show="fewstep_flash_vaed.fit:describe",
            plan="fewstep_flash_vaed.plan:plan",
        ),
        Card(
            name="exact-decode",
            summary="decode a Wan video VAE faster on a CPU, with its own weights and the same result",
            target="fewstep_flash_vaed.method:ExactDecode",
            paper="2602.19161",
            models=("AutoencoderKLWan", "WanPipeline"),
            run="fewstep_flash_vaed.roundtrip:RoundTrip",
            show="fewstep.families.wan_vae_cost:describe",
            plan="fewstep_flash_vaed.plan:plan",
        ),
    ]


@hookimpl
def fewstep_tasks():
    return [
        Card(
            name="clip-decoding",
            summary="decode held-out frames of real clips: time, and distance to the clips and to the teacher",
            target="fewstep_flash_vaed.roundtrip:ClipDecoding",
        ),
        Card(
            name="clip-pruning",
            summary="prune a decoder in every way: R^2 of the kept channels, and PSNR before distillation",
            target="fewstep_flash_vaed.ablations:ClipPruning",
        ),
        Card(
            name="clip-distilling",
            summary="distil students that differ in one thing for equally long, and compare them on held-out crops",
            target="fewstep_flash_vaed.ablations:ClipDistilling",
        ),
    ]


@hookimpl
def fewstep_recipes():
    return [
        Card(
            name="flash-vaed-clips",
            summary="distil a pruned decoder on real clips in three phases: features, features and pixels, pixels",
            target="fewstep_flash_vaed.distil:Distil",
            paper="2602.19161",
            models=("AutoencoderKLWan",),
        ),
    ]
