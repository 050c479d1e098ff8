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
            run="fewstep_sgmd.generate:Generate",
        )
    ]
