import torch

from ea_psmnet.ops.convex_upsampling import convex_upsampling


def test_every_pixel_is_the_stated_mean_of_its_neighbours():
    generator = torch.Generator().manual_seed(1)
    cells = torch.rand(2, 3, 5, generator=generator, dtype=torch.float64)
    weights = torch.randn(2, 9 * 4, 3, 5, generator=generator, dtype=torch.float64)
    fine = convex_upsampling(cells, weights, 2)
    assert fine.shape == (2, 6, 10)
    for image, y, x in [(0, 0, 0), (1, 3, 7), (0, 5, 9), (1, 2, 4)]:
        shares = weights[image, :, y // 2, x // 2].view(9, 4)[:, 2 * (y % 2) + x % 2].softmax(0)
        expected = sum(
            shares[3 * dy + dx]
            * cells[image, min(max(y // 2 + dy - 1, 0), 2), min(max(x // 2 + dx - 1, 0), 4)]
            for dy in range(3)
            for dx in range(3)
        )
        torch.testing.assert_close(fine[image, y, x], expected)


def test_it_stays_within_the_neighbours_and_sums_in_float32():
    cells = torch.arange(12.0).view(1, 3, 4)
    fine = convex_upsampling(cells, torch.randn(1, 9 * 16, 3, 4).bfloat16(), 4)
    assert fine.dtype == torch.float32
    assert fine.min() >= 0
    assert fine.max() <= 11
