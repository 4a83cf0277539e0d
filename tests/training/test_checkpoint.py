"""Which checkpoints are kept."""

import pytest

from ea_psmnet.training.checkpoint import load_newest, save_checkpoint


@pytest.mark.parametrize("keep", [1, 2])
def test_damaged_ones_of_later_steps_keep_no_good_one_out(tmp_path, keep):
    """A run whose newest checkpoints were damaged has started again and saves."""
    for step in (40, 50):
        (tmp_path / f"step-{step:07d}.pt").write_bytes(b"damaged")
    for step in (10, 20, 30):
        save_checkpoint(tmp_path, step, {}, keep)
    good = [path.name for path in sorted(tmp_path.iterdir())][:-2]
    assert good == ["step-0000020.pt", "step-0000030.pt"][-keep:]
    with pytest.warns(UserWarning, match="damaged"):
        assert load_newest(tmp_path)["step"] == 30
    save_checkpoint(tmp_path, 50, {}, keep)
    assert load_newest(tmp_path)["step"] == 50
