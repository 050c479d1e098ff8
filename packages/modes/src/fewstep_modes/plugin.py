"""Cards of MoDES, its ablations and baselines, and of the task and model that time them."""

from typing import Literal

from fewstep.cards import Card, hookimpl

from . import hookspecs as hookspecs  # so that other packages can add policies, adapters and modalities

_FAMILIES = (
    *("Qwen3VLMoeForConditionalGeneration", "InternVLForConditionalGeneration", "DeepseekV3ForCausalLM"),
    *("Qwen3MoeForCausalLM", "OlmoeForCausalLM", "MixtralForCausalLM", "GptOssForCausalLM"),
)
Role = Literal["method", "baseline", "ablation"]
_ASK = "fewstep.families.vlm:Ask"


def _card(name: str, summary: str, target: str, paper: str | None, fit: str | None, role: Role = "method") -> Card:
    return Card(
        name=name,
        summary=summary,
        target=f"fewstep_modes.{target}",
        paper=paper,
        models=_FAMILIES,
        run=_ASK,
        fit=f"fewstep_modes.fit:{fit}" if fit else None,
        show="fewstep_modes.method:describe",
        plan="fewstep_modes.plan:plan" if fit and role == "method" else None,
        role=role,
    )


@hookimpl
def fewstep_methods():
    return [
        _card(
            "modes",
            "skip experts by layer importance times routing weight, text and vision apart",
            "method:MoDES",
            "2511.15690",
            "FitMoDES",
        ),
        _card("dmt", "MoDES without layer importance", "method:DMT", None, "FitDMT", "ablation"),
        _card("gmlg", "MoDES with one threshold", "method:GMLG", None, "FitGMLG", "ablation"),
        _card("single", "one threshold on routing weights", "method:Single", None, "FitSingle", "ablation"),
        _card("reduce-k", "fewer experts for every token", "baselines:ReduceK", None, "FitReduceK", "baseline"),
        _card(
            "naee", "drop the light tail of a token's experts", "baselines:NAEE", "2402.14800", "FitNAEE", "baseline"
        ),
        _card("mc-moe", "NAEE with protection of tokens", "baselines:MCMoE", "2410.06270", "FitMCMoE", "baseline"),
        _card(
            "reap", "remove the experts that contribute least", "baselines:REAP", "2510.13999", "FitREAP", "baseline"
        ),
        _card("skip-policy", "a policy that another package registers", "baselines:Registered", None, None),
    ]


@hookimpl
def fewstep_loaders():
    return [
        Card(
            name="moe-wide",
            summary="a wide random Qwen3-MoE with the proportions of Qwen3-VL-30B-A3B: to time with, not to ask",
            target="fewstep_modes.wide:load",
            models=("Qwen3MoeForCausalLM",),
            config="fewstep_modes.wide:configuration",
        )
    ]


@hookimpl
def fewstep_tasks():
    return [
        Card(
            name="moe-latency",
            summary="seconds of a prompt and of each new token",
            target="fewstep_modes.wide:MoeLatency",
        )
    ]
