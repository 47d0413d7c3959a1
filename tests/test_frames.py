"""Frames: orthonormal, the same everywhere, independent of the batch; wrong ones refused in words."""

import pytest
import torch

from grokkit.errors import UsageError
from grokkit.spline import draw_orthonormal_frame, local_complexity
from grokkit.spline.frames import make_frames


@pytest.mark.parametrize(("directions", "size"), [(1, 1), (3, 7), (7, 7), (20, 300)])
def test_rows_are_orthonormal(directions, size):
    frame = draw_orthonormal_frame(directions, size, seed=3)
    assert frame.shape == (directions, size)
    assert (frame @ frame.T - torch.eye(directions, dtype=torch.float64)).abs().max() < 1e-13


def test_same_seed_gives_the_same_frame_and_another_seed_another():
    assert torch.equal(draw_orthonormal_frame(4, 9, 0), draw_orthonormal_frame(4, 9, 0))
    assert not torch.equal(draw_orthonormal_frame(4, 9, 0), draw_orthonormal_frame(4, 9, 1))


def test_frame_does_not_read_or_move_the_global_random_state():
    torch.manual_seed(1)
    first, state = draw_orthonormal_frame(4, 9, 0), torch.get_rng_state()
    torch.manual_seed(2)
    assert torch.equal(first, draw_orthonormal_frame(4, 9, 0))
    torch.manual_seed(1)
    draw_orthonormal_frame(4, 9, 0)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_generator_is_advanced():
    source = torch.Generator().manual_seed(0)
    assert not torch.equal(draw_orthonormal_frame(2, 5, source), draw_orthonormal_frame(2, 5, source))


def test_directions_have_no_preferred_sign():
    firsts = torch.stack([draw_orthonormal_frame(1, 3, seed)[0] for seed in range(400)])
    assert firsts.mean(0).abs().max() < 4 / (3 * 400) ** 0.5
    assert torch.allclose(firsts.T @ firsts / 400, torch.eye(3, dtype=torch.float64) / 3, atol=0.06)


def test_frames_of_single_points_do_not_depend_on_the_block():
    frames = make_frames(torch.zeros(5, 2, 3), 4, "per_point", 7, None)
    whole = frames.at(range(5))
    assert whole.shape == (4, 5, 2, 3)
    assert torch.equal(whole[:, 3:4], frames.at(range(3, 4)))
    assert not torch.equal(whole[:, 0], whole[:, 1])


@pytest.mark.parametrize("directions", [0, -1, 13, 2.0, True])
def test_directions_out_of_range_are_refused_with_the_range(directions):
    with pytest.raises(UsageError, match=r"`directions` must be an int in 1\.\.12 \(the input's size\); got"):
        local_complexity(torch.nn.ReLU(), torch.randn(2, 3, 4), directions=directions)


def test_a_frame_that_is_not_orthonormal_is_refused_with_its_error():
    with pytest.raises(UsageError, match=r"below 0\.0001; got 3"):
        local_complexity(torch.nn.ReLU(), torch.randn(2, 3), frame=2 * torch.eye(3))
    with pytest.raises(UsageError, match=r"must have shape \(P, 3\)"):
        local_complexity(torch.nn.ReLU(), torch.randn(2, 3), frame=torch.eye(4))
    with pytest.raises(UsageError, match=r"must be a tensor \(P, D\).*got list"):
        local_complexity(torch.nn.ReLU(), torch.randn(2, 3), frame=[[1.0, 0.0, 0.0]])
    with pytest.raises(UsageError, match="shared by all points"):
        local_complexity(torch.nn.ReLU(), torch.randn(2, 3), frame=torch.eye(3), frames="per_point")
    with pytest.raises(UsageError, match="'shared' or 'per_point'"):
        local_complexity(torch.nn.ReLU(), torch.randn(2, 3), directions=2, frames="each")
