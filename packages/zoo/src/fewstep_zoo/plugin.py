"""Cards of the zoo's models."""

from fewstep.cards import Card, hookimpl

_SKIPPING = ("modes", "dmt", "gmlg", "single", "reduce-k", "naee", "mc-moe", "reap")
"""Methods that were fitted to ``digits-qwen3-vl-moe``."""


@hookimpl
def fewstep_loaders():
    return [
        Card(
            name="smollm2-135m",
            summary="SmolLM2-135M-Instruct, 4-bit weights dequantised: a real LLM, 30 layers, 8192 positions",
            target="fewstep_zoo.smollm2:load",
            paper="2502.02737",
            models=("LlamaForCausalLM",),
            config="fewstep_zoo.smollm2:configuration",
        ),
        Card(
            name="digits-wan",
            summary="a Wan video model of moving digits, 0.6 M parameters, trained from scratch: prompts in, clips out",
            target="fewstep_zoo.digits.load:teacher",
            models=("WanPipeline",),
            config="fewstep_zoo.digits.load:TEACHER",
            saved={"sgmd": "fewstep_zoo:weights/digits-wan-sgmd"},
        ),
        Card(
            name="digits-judge",
            summary="the classifier that scores moving digits: which digit, where to, how fast",
            target="fewstep_zoo.digits.load:judge",
            models=("DigitsJudge",),
        ),
        Card(
            name="tiny-llada",
            summary="a byte-level masked diffusion LM in the LLaDA format, trained on Python's own texts",
            target="fewstep_zoo.dllm.load:tiny",
            paper="2502.09992",
            models=("LlamaForCausalLM",),
            config="fewstep_zoo.dllm.load:TINY",
        ),
        Card(
            name="wired-recall",
            summary="a masked diffusion LM wired by hand to look up keys; the right answer is known at any length",
            target="fewstep_zoo.dllm.recall:load",
            models=("LlamaForCausalLM",),
            config="fewstep_zoo.dllm.recall:configuration",
        ),
        Card(
            name="llada-small-random",
            summary="a LLaDA of 8 layers with random weights, 65536 positions: for timing and nothing else",
            target="fewstep_zoo.dllm.load:small_random",
            models=("LlamaForCausalLM",),
            config="fewstep_zoo.dllm.load:SMALL",
        ),
        Card(
            name="digits-qwen3-vl-moe",
            summary="a Qwen3-VL mixture of experts that answers questions about canvases of digits, 0.7 M parameters",
            target="fewstep_zoo.vlm.load:answerer",
            models=("Qwen3VLMoeForConditionalGeneration",),
            config="fewstep_zoo.vlm.load:WEIGHTS",
            saved={name: f"fewstep_zoo:weights/digits-qwen3-vl-moe-{name}" for name in _SKIPPING},
        ),
        Card(
            name="clips-wan-vae",
            summary="a Wan video VAE of small width, 1.4 M parameters, trained on real clips",
            target="fewstep_zoo.clips.load:vae",
            models=("AutoencoderKLWan",),
            config="fewstep_zoo.clips.load:FOLDER",
            saved={"flash-vaed": "fewstep_zoo:weights/clips-wan-vae-flash"},
        ),
        Card(
            name="worlds-wan",
            summary="a Wan video model of panning worlds, 1.6 M parameters, trained from scratch",
            target="fewstep_zoo.worlds.load:teacher",
            models=("WanPipeline",),
            config="fewstep_zoo.worlds.load:TEACHER",
        ),
        Card(
            name="worlds-causal-wan",
            summary="a causal Wan of panning worlds: a video chunk by chunk, each given the clean ones before it",
            target="fewstep_zoo.worlds.load:causal",
            models=("WanPipeline",),
            config="fewstep_zoo.worlds.load:CAUSAL",
        ),
        Card(
            name="worlds-vae",
            summary="the video VAE of panning worlds, 1.9 M parameters: 8x in space, 4x in time, as Wan 2.1's",
            target="fewstep_zoo.worlds.load:vae",
            models=("AutoencoderKLWan",),
            config="fewstep_zoo.worlds.load:VAE",
        ),
    ]


@hookimpl
def fewstep_tasks():
    return [
        Card(
            name="moving-digits",
            summary="make clips of moving digits from prompts: time per clip, accuracy, Frechet distance, motion",
            target="fewstep_zoo.digits.task:MovingDigits",
        ),
        Card(
            name="time-to-quality",
            summary="train recipes on moving digits: seconds until the baseline's best Frechet distance",
            target="fewstep_zoo.digits.task:TimeToQuality",
        ),
        Card(
            name="worlds",
            summary="make clips of panning worlds from prompts: time per clip, direction, steadiness, kernel distance",
            target="fewstep_zoo.worlds.task:Worlds",
        ),
        Card(
            name="worlds-continuation",
            summary="go on with true beginnings of panning worlds: PSNR against the truth, chunk by chunk",
            target="fewstep_zoo.worlds.task:WorldsContinuation",
        ),
        Card(
            name="digit-qa",
            summary="questions about canvases of digits: accuracy by kind of question, and distance to the dense model",
            target="fewstep_zoo.vlm.task:DigitQA",
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
        Card(
            name="tiny-llada",
            summary="train tiny-llada from scratch by masked diffusion on the bytes of Python's own texts",
            target="fewstep_zoo.dllm.recipes:TinyLLaDA",
            paper="2502.09992",
        ),
        Card(
            name="digits-qwen3-vl-moe",
            summary="train digits-qwen3-vl-moe from scratch on questions about canvases of digits",
            target="fewstep_zoo.vlm.recipe:Answerer",
            paper="2511.21631",
        ),
        Card(
            name="worlds-wan-teacher",
            summary="train worlds-wan by flow matching on whole clips, from worlds-causal-wan",
            target="fewstep_zoo.worlds.recipes:Teacher",
            paper="2210.02747",
        ),
        Card(
            name="worlds-causal-wan",
            summary="train worlds-causal-wan from scratch by teacher forcing, with turns in mid-clip",
            target="fewstep_zoo.worlds.recipes:Causal",
            paper="2412.07772",
        ),
        Card(
            name="worlds-vae",
            summary="train the VAE of panning worlds from scratch",
            target="fewstep_zoo.worlds.vae:WorldsVAE",
        ),
        Card(
            name="clips-wan-vae",
            summary="train clips-wan-vae from scratch on real clips and animations",
            target="fewstep_zoo.clips.recipes:VAE",
        ),
    ]
