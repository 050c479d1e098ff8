"""Cards of SGMD."""

from fewstep.cards import Card, hookimpl


@hookimpl
def fewstep_methods():
    return [
        Card(
            name="sgmd",
            summary="run a Wan pipeline in four steps without guidance, with a distilled student's weights",
            target="fewstep_sgmd.method:SGMD",
            paper="2605.30116",
            models=("WanPipeline",),
            run="fewstep.students.inputs:VideoInputs",
            plan="fewstep_sgmd.plan:plan",
        )
    ]


@hookimpl
def fewstep_recipes():
    where, wan = "fewstep_sgmd.recipes", ("WanTransformer3DModel",)
    return [
        Card(
            name="sgmd-digits",
            summary="SGMD on moving digits: four-step student of digits-wan",
            target=f"{where}:sgmd_digits",
            paper="2605.30116",
            models=wan,
        ),
        Card(
            name="dmd2-digits",
            summary="DMD2 on moving digits, five critic updates for each of the student",
            target=f"{where}:dmd2_digits",
            paper="2405.14867",
            models=wan,
            role="baseline",
        ),
        Card(
            name="tsg-fisher-digits",
            summary="the Fisher part of SGMD alone on moving digits, five critic updates for each of the student",
            target=f"{where}:tsg_fisher_digits",
            paper="2605.30116",
            models=wan,
            role="ablation",
        ),
        Card(
            name="sid-digits",
            summary="SiD on moving digits, one to one, teacher detached",
            target=f"{where}:sid_digits",
            paper="2404.04057",
            models=wan,
            role="baseline",
        ),
        Card(
            name="sgmd-wan-1.3b",
            summary="the official SGMD recipe for Wan2.1-T2V-1.3B",
            target=f"{where}:sgmd_wan_1_3b",
            paper="2605.30116",
            models=wan,
        ),
        Card(
            name="sgmd-wan-14b",
            summary="the official SGMD recipe for Wan2.1-T2V-14B",
            target=f"{where}:sgmd_wan_14b",
            paper="2605.30116",
            models=wan,
        ),
        Card(
            name="sgmd-wan-5b",
            summary="the official SGMD recipe for Wan2.2-TI2V-5B, from prompts alone",
            target=f"{where}:sgmd_wan_5b",
            paper="2605.30116",
            models=wan,
        ),
    ]
