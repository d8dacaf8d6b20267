import torch

from dpd.agents.rng import RowRandom, Stream

SEEDS = [(0, 0), (0, 1), (1, 0)]


def test_a_row_draws_the_same_whoever_stands_beside_it() -> None:
    together = RowRandom(SEEDS, Stream.EXPLORE)
    drawn = [together.normal(5), together.permutation(9), together.integers(100, 7)]
    for n, seed in enumerate(SEEDS):
        alone = RowRandom([seed], Stream.EXPLORE)
        for row, x in zip(
            drawn, [alone.normal(5), alone.permutation(9), alone.integers(100, 7)], strict=True
        ):
            assert torch.equal(row[n], x[0])


def test_no_two_rows_and_no_two_streams_draw_alike() -> None:
    # two draws of 64-bit normals agree with probability zero
    drawn = torch.cat([RowRandom(SEEDS, s).normal(1, dtype=torch.float64) for s in Stream])
    assert drawn.unique().numel() == len(SEEDS) * len(Stream)


def test_a_permutation_holds_every_number_once() -> None:
    found = RowRandom(SEEDS, Stream.BATCH).permutation(50)
    assert torch.equal(found.sort(1).values, torch.arange(50).expand(3, 50))
