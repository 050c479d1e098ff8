"""Cards of SlimInfer, its baselines and the long-prompt tasks."""

from fewstep.cards import Card, hookimpl

_FAMILIES = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM", "SmolLM3ForCausalLM")


@hookimpl
def fewstep_methods():
    ask = "fewstep.families.causal_lm:Ask"
    return [
        Card(
            name="slim-infer",
            summary="drop blocks of prompt tokens from the hidden states of a long-context LLM",
            target="fewstep_slim_infer.method:SlimInfer",
            paper="2508.06447",
            models=_FAMILIES,
            run=ask,
            fit="fewstep_slim_infer.fit:Probe",
            plan="fewstep_slim_infer.plan:plan",
        ),
        Card(
            name="lazy-llm",
            summary="drop single prompt tokens by the last token's attention",
            target="fewstep_slim_infer.baselines:LazyLLM",
            paper="2407.14057",
            models=_FAMILIES,
            run=ask,
            role="baseline",
        ),
        Card(
            name="gemfilter",
            summary="select prompt tokens with an early layer, then run the model on them alone",
            target="fewstep_slim_infer.baselines:GemFilter",
            paper="2409.17422",
            models=_FAMILIES,
            run=ask,
            role="baseline",
        ),
    ]


@hookimpl
def fewstep_tasks():
    return [
        Card(
            name="continuation",
            summary="continue a real long text: time to first token, decoding, and distance to the dense model",
            target="fewstep_slim_infer.tasks:Continuation",
        ),
        Card(
            name="planted-facts",
            summary="find facts planted in documents that no setting was chosen on: many kinds, several wordings",
            target="fewstep_slim_infer.retrieval:Retrieval",
        ),
        Card(
            name="needle",
            summary="find a sentence hidden in a real long text",
            target="fewstep_slim_infer.tasks:Needle",
        ),
    ]
