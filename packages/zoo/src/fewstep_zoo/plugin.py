"""Cards of the zoo's models."""

from fewstep.cards import Card, hookimpl


@hookimpl
def fewstep_loaders():
    return [
        Card(
            name="smollm2-135m",
            summary="SmolLM2-135M-Instruct, 4-bit weights dequantised: a real LLM, 30 layers, 8192 positions",
            target="fewstep_zoo.smollm2:load",
            paper="2502.02737",
            models=("LlamaForCausalLM",),
        ),
    ]


@hookimpl
def fewstep_recipes():
    return [
        Card(
            name="digits-wan-teacher",
            summary="train digits-wan from scratch by flow matching",
            target="fewstep_zoo.digits.recipes:Teacher",
            paper="2210.02747",
        ),
        Card(
            name="digits-judge",
            summary="train the classifier of moving digits from scratch",
            target="fewstep_zoo.digits.recipes:Judge",
        ),
    ]
