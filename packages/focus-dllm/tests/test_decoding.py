import pytest
from fewstep_focus_dllm import DecodingOptions
from fewstep_focus_dllm.decoding import unmask_count


def test_ten_masks_in_four_steps():
    assert [unmask_count(10, 4, step) for step in range(4)] == [3, 3, 2, 2]


@pytest.mark.parametrize(("masked", "steps"), [(32, 32), (32, 5), (7, 16), (1, 1), (31, 30)])
def test_a_schedule_unmasks_everything(masked, steps):
    assert sum(unmask_count(masked, steps, step) for step in range(steps)) == masked


def test_steps_beyond_the_schedule_go_on_one_by_one():
    assert unmask_count(8, 4, 4) == 1


def test_one_step_a_token_by_default():
    assert [b.steps for b in DecodingOptions(gen_length=64, block_length=32).blocks(10)] == [32, 32]


def test_a_shorter_last_block():
    blocks = DecodingOptions(gen_length=70, block_length=32).blocks(100)
    assert [(b.start, b.end) for b in blocks] == [(100, 132), (132, 164), (164, 170)]
    assert [b.steps for b in blocks] == [32, 32, 6]


@pytest.mark.parametrize("steps", [1, 3, 7, 20, 64])
def test_steps_that_do_not_divide(steps):
    shares = [b.steps for b in DecodingOptions(gen_length=64, block_length=16, steps=steps).blocks(0)]
    assert min(shares) >= 1 and sum(shares) == max(steps, 4)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"gen_length": 0}, "gen_length must be at least 1"),
        ({"block_length": 0}, "block_length"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"temperature": -1.0}, "temperature"),
        ({"threshold": 1.5}, r"\(0, 1\]"),
        ({"threshold": 0.9, "remasking": "margin"}, "probabilities"),
    ],
)
def test_what_is_out_of_range_is_said(fields, said):
    with pytest.raises(ValueError, match=said):
        DecodingOptions(**fields)
