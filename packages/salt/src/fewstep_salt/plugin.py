"""Cards of Salt."""

from fewstep.cards import Card, hookimpl


@hookimpl
def fewstep_recipes():
    where, wan = "fewstep_salt.recipes", ("WanTransformer3DModel",)
    return [
        Card(
            name="sc-dmd-digits",
            summary="SC-DMD on moving digits: trained on eight steps that compose, used with four",
            target=f"{where}:sc_dmd_digits",
            paper="2604.03118",
            models=wan,
        ),
        Card(
            name="dmd-8-digits",
            summary="DMD2 on moving digits on the same eight steps, without the semigroup loss",
            target=f"{where}:dmd_8_digits",
            paper="2405.14867",
            models=wan,
            role="baseline",
        ),
        Card(
            name="sc-dmd-wan-1.3b",
            summary="SC-DMD of Wan2.1-T2V-1.3B",
            target=f"{where}:sc_dmd_wan_1_3b",
            paper="2604.03118",
            models=wan,
        ),
    ]
