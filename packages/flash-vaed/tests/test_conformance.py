import pytest
import torch
from fewstep.families import wan
from fewstep.testing import Case, MethodSuite
from fewstep_flash_vaed import ExactDecode, FlashVAED


@torch.no_grad()
def decoded(vae):
    latents = torch.randn(1, 4, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    weight = next(vae.quant_conv.parameters())
    return vae.decode(latents.to(weight.dtype)).sample


def compiled(vae):
    """Compiling a VAE leaves its methods alone, so what is compiled is the call of the whole."""
    return decoded(getattr(vae, "_orig_mod", vae))


class TestFlashVAED(MethodSuite):
    @pytest.fixture
    def case(self, vae, method):
        return Case(method=method, model=vae, call=decoded, compiled=compiled)

    def test_save_then_load_keeps_the_weights(self, case, tmp_path):
        case.method.save_pretrained(tmp_path / "copy")
        with FlashVAED.from_pretrained(tmp_path / "copy").apply(case.model):
            pixels = decoded(case.model)
        with case.method.apply(case.model):
            assert torch.equal(decoded(case.model), pixels)


class TestExactDecode(MethodSuite):
    @pytest.fixture
    def case(self, vae):
        return Case(method=ExactDecode(chunk=2), model=vae, call=decoded, compiled=compiled)


class TestInAPipeline(MethodSuite):
    @pytest.fixture
    def case(self, tmp_path):
        pipe = wan.tiny_pipeline()

        def video(pipe):
            weight = next(pipe.transformer.parameters())
            out = pipe(
                "a cat", num_inference_steps=2, num_frames=5, height=16, width=16, max_sequence_length=4,
                generator=torch.Generator().manual_seed(0), output_type="pt",
            )  # fmt: skip
            return out.frames.to(weight.dtype)

        return Case(method=ExactDecode(), model=pipe, call=video)
