"""The card of this package."""

from fewstep.cards import Card, hookimpl


@hookimpl
def fewstep_methods():
    return [
        Card(
            name="new-name",
            summary="round the weights of a language model to a coarse grid",
            target="fewstep_new_name.method:NewName",
            models=("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM"),
        )
    ]
