"""Cards of Focus-dLLM, its baselines and the tasks of masked diffusion language models."""

from fewstep.cards import Card, hookimpl

_INPUTS = "fewstep_focus_dllm.generation:DiffusionInputs"
_FAMILIES = ("LlamaForCausalLM (LLaDA)", "Qwen2ForCausalLM (Dream)")


def _baseline(cls: str, name: str, paper: str, summary: str) -> Card:
    target = f"fewstep_focus_dllm.baselines:{cls}"
    return Card(name=name, summary=summary, target=target, paper=paper, models=_FAMILIES, run=_INPUTS, role="baseline")


@hookimpl
def fewstep_methods():
    return [
        Card(
            name="focus-dllm",
            summary="decode a diffusion LM by computing only what is about to be unmasked, against a pruned prompt",
            target="fewstep_focus_dllm.method:FocusDLLM",
            paper="2602.02159",
            models=_FAMILIES,
            run=_INPUTS,
            fit="fewstep_focus_dllm.fit:Probe",
            show="fewstep_focus_dllm.cost:describe",
            plan="fewstep_focus_dllm.plan:plan",
        ),
        _baseline(
            "FastDLLM", "fast-dllm", "2505.22618", "block-wise key-value cache of a diffusion LM, prefix or dual"
        ),
        _baseline(
            "FastDLLMPublished",
            "fast-dllm-published",
            "2505.22618",
            "the dual cache with un-rotated keys, all rotated at each step, as published",
        ),
        _baseline(
            "SparseDLLM", "sparse-dllm", "2508.02558", "evict cached tokens that a block does not need, once a block"
        ),
        _baseline(
            "Vanilla",
            "vanilla",
            "2502.09992",
            "diffusion decoding as LLaDA published it: everything, and logits of all rows, at each step",
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
