"""Cards of Focus-dLLM, its baselines and the tasks of masked diffusion language models."""

from fewstep.cards import Card, hookimpl

_FAMILIES = ("LlamaForCausalLM (LLaDA)", "Qwen2ForCausalLM (Dream)")


@hookimpl
def fewstep_methods():
    ask = "fewstep_focus_dllm.ask:Ask"
    return [
        Card(
            name="focus-dllm",
            summary="decode a diffusion LM by computing only what is about to be unmasked, against a pruned prompt",
            target="fewstep_focus_dllm.method:FocusDLLM",
            paper="2602.02159",
            models=_FAMILIES,
            run=ask,
            fit="fewstep_focus_dllm.fit:Probe",
            show="fewstep_focus_dllm.describe:describe",
        ),
        Card(
            name="fast-dllm",
            summary="block-wise key-value cache of a diffusion LM, prefix or dual",
            target="fewstep_focus_dllm.peers:FastDLLM",
            paper="2505.22618",
            models=_FAMILIES,
            run=ask,
            role="baseline",
        ),
        Card(
            name="fast-dllm-published",
            summary="the dual cache with un-rotated keys, all rotated at each step, as published",
            target="fewstep_focus_dllm.peers:FastDLLMPublished",
            paper="2505.22618",
            models=_FAMILIES,
            run=ask,
            role="baseline",
        ),
        Card(
            name="sparse-dllm",
            summary="evict cached tokens that a block does not need, once a block",
            target="fewstep_focus_dllm.peers:SparseDLLM",
            paper="2508.02558",
            models=_FAMILIES,
            run=ask,
            role="baseline",
        ),
        Card(
            name="vanilla",
            summary="diffusion decoding as LLaDA published it: everything, and logits of all rows, at each step",
            target="fewstep_focus_dllm.peers:Vanilla",
            paper="2502.09992",
            models=_FAMILIES,
            run=ask,
            role="baseline",
        ),
    ]


@hookimpl
def fewstep_tasks():
    return [
        Card(
            name="latency",
            summary="seconds of a response, of a refresh and of a cached step at one context length",
            target="fewstep_focus_dllm.tasks:Latency",
        ),
        Card(
            name="retrieval",
            summary="look up values of keys in a long prompt of records: accuracy is exact at any length",
            target="fewstep_focus_dllm.tasks:Retrieval",
        ),
        Card(
            name="agreement",
            summary="continue a real text: agreement with vanilla decoding, and how likely vanilla finds the result",
            target="fewstep_focus_dllm.tasks:Agreement",
        ),
    ]
