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
            plan="fewstep_salt.plan:plan",
            run="fewstep_salt.inputs:StreamInputs",
        ),
        Card(
            name="self-forcing",
            summary="run a causal Wan student of Self Forcing chunk by chunk, as salt does",
            target="fewstep_salt.method:SelfForcing",
            paper="2506.08009",
            models=models,
            role="baseline",
            plan="fewstep_salt.plan:plan",
            run="fewstep_salt.inputs:StreamInputs",
        ),
        Card(
            name="sc-dmd",
            summary="run a Wan pipeline in two, four or eight steps without guidance, with steps that compose",
            target="fewstep_salt.sc_dmd:SCDMD",
            paper=paper,
            models=models,
            plan="fewstep_salt.plan:plan",
            run="fewstep.students.inputs:VideoInputs",
        ),
    ]


@hookimpl
def fewstep_tasks():
    return [
        Card(
            name="semigroup-defect",
            summary="by how much one long step and the same way in two short ones disagree, over all triples of levels",
            target="fewstep_salt.task:SemigroupDefect",
            paper="2604.03118",
        )
    ]


@hookimpl
def fewstep_recipes():
    where, causal = "fewstep_salt.recipes", "fewstep_salt.causal_recipes"
    wan = ("WanTransformer3DModel",)
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
        Card(
            name="salt-worlds",
            summary="Salt on panning worlds: a causal student for eight, four and two steps",
            target=f"{causal}:salt_worlds",
            paper="2604.03118",
            models=wan,
        ),
        Card(
            name="self-forcing-worlds",
            summary="Self Forcing on panning worlds, four steps",
            target=f"{causal}:self_forcing_worlds",
            paper="2506.08009",
            models=wan,
            role="baseline",
        ),
        Card(
            name="self-forcing-8-worlds",
            summary="Self Forcing on panning worlds, eight steps; with --semigroup 0.2 self-consistency alone",
            target=f"{causal}:self_forcing_8_worlds",
            paper="2506.08009",
            models=wan,
            role="ablation",
        ),
        Card(
            name="mixed-worlds",
            summary="mixed step lists alone on panning worlds; with --semigroup 0.2 self-consistency too",
            target=f"{causal}:mixed_worlds",
            paper="2604.03118",
            models=wan,
            role="ablation",
        ),
        Card(
            name="salt-wan-1.3b",
            summary="the official Salt recipe for Wan2.1-T2V-1.3B from a start of Self Forcing",
            target=f"{causal}:salt_wan_1_3b",
            paper="2604.03118",
            models=wan,
        ),
        Card(
            name="salt-wan-1.3b-causal-forcing",
            summary="the official Salt recipe for Wan2.1-T2V-1.3B from a start of Causal Forcing",
            target=f"{causal}:salt_wan_1_3b_causal_forcing",
            paper="2604.03118",
            models=wan,
        ),
        Card(
            name="salt-wan-1.3b-longlive",
            summary="the official Salt recipe for Wan2.1-T2V-1.3B with the window and sink of LongLive",
            target=f"{causal}:salt_wan_1_3b_longlive",
            paper="2604.03118",
            models=wan,
        ),
        Card(
            name="self-forcing-wan-1.3b",
            summary="Self Forcing of Wan2.1-T2V-1.3B, four steps",
            target=f"{causal}:self_forcing_wan_1_3b",
            paper="2506.08009",
            models=wan,
            role="baseline",
        ),
    ]
