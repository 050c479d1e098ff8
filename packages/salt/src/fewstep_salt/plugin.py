"""Cards of Salt."""

from fewstep.cards import Card, hookimpl


@hookimpl
def fewstep_methods():
    paper, models = "2604.03118", ("WanPipeline",)
    return [
        Card(
            name="salt",
            summary="run a causal Wan student chunk by chunk with a KV cache, in four or two steps, for any length",
            target="fewstep_salt.method:Salt",
            paper=paper,
            models=models,
            run="fewstep_salt.inputs:StreamInputs",
        ),
        Card(
            name="sc-dmd",
            summary="run a Wan pipeline in two, four or eight steps without guidance, with steps that compose",
            target="fewstep_salt.sc_dmd:SCDMD",
            paper=paper,
            models=models,
            run="fewstep.students.inputs:VideoInputs",
        ),
    ]
