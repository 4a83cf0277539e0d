"""Original PSMNet checkpoints: read by name, strictly, and computing what the original does."""

import zipfile
from functools import partial

import pytest
import torch
from models.original_psmnet import OriginalState, psmnet

from ea_psmnet.models.weights import load_model

SIZE = (256, 272)  # the original needs 256 rows for its largest pool
DEPTH = 32


@pytest.fixture(scope="module")
def images():
    generator = torch.Generator().manual_seed(7)
    return [torch.rand(1, 3, *SIZE, generator=generator, dtype=torch.float64) for _ in range(2)]


def normalise(image):
    # ImageNet's constants, rounded to the float32 they are stored in.
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    return (image - mean.double().view(3, 1, 1)) / std.double().view(3, 1, 1)


@pytest.fixture(scope="module", params=["hourglass", "basic"])
def original(request, images):
    """A state in the original's names, as saved, and the original with that state in float64."""
    basic = request.param == "basic"
    saved = OriginalState()
    with torch.no_grad():
        psmnet(saved, *(image.float() for image in images), 16, basic=basic)  # creates the tensors
    exact = OriginalState({n: t.double() if t.is_floating_point() else t for n, t in saved.items()})
    return saved, partial(psmnet, exact, basic=basic)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("original", "prefix", "align"),
    [("hourglass", "module.", False), ("hourglass", "", True), ("basic", "", False)],
    indirect=["original"],
)
def test_gives_the_originals_output(tmp_path, images, original, prefix, align):
    saved, network = original
    path = tmp_path / "pretrained.tar"
    torch.save({"epoch": 9, "state_dict": {prefix + n: t for n, t in saved.items()}}, path)
    model = load_model(path, max_disparity=DEPTH, align_corners=align).double()
    with torch.no_grad():
        expected = network(*map(normalise, images), DEPTH, align=align)
        (disparity,) = model(*images).disparities
    torch.testing.assert_close(disparity, expected, rtol=0, atol=1e-9)
    assert disparity.std() > 0.05  # a constant output would agree by accident


@pytest.mark.parametrize("original", ["hourglass"], indirect=True)
def test_batch_counters_may_be_missing(tmp_path, original):
    saved, _ = original
    path = tmp_path / "torch040.tar"
    state = {n: t for n, t in saved.items() if not n.endswith("num_batches_tracked")}
    torch.save({"state_dict": state}, path)
    load_model(path)


def _bias(tensor):
    return lambda state: state.update({"dres0.0.1.bias": tensor})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("dres0.0.0.weight"), "lacks 'aggregation.stem.0.0.weight'"),
        (lambda s: s.update({"dres9.weight": torch.zeros(1)}), "'dres9.weight' is not a parameter"),
        (
            lambda s: s.update({"dres0.0.1.bias": torch.zeros(3)}),
            "the wrong shape for 'aggregation.stem.0.1.bias'",
        ),
        # A few bytes in the file that stand for 256 GiB.
        (
            _bias(torch.zeros(1).expand(2**18, 2**18)),
            "the wrong shape for 'aggregation.stem.0.1.bias'",
        ),
        (_bias(torch.zeros(0)), "the wrong shape for 'aggregation.stem.0.1.bias'"),
        (
            _bias(torch.zeros(32, device="meta")),
            "no dense numbers of its type for 'agg",
        ),
        (
            _bias(torch.ones(32).to_sparse()),
            "no dense numbers of its type for 'agg",
        ),
        (
            _bias(torch.ones(32, dtype=torch.cfloat)),
            "no dense numbers of its type for 'agg",
        ),
        (
            _bias(torch.ones(32, dtype=torch.int64)),
            "no dense numbers of its type for 'agg",
        ),
        (
            lambda s: _bias(torch.quantize_per_tensor(torch.ones(32), 0.1, 0, torch.qint8))(s),
            "no dense numbers of its type for 'agg",
        ),
        (
            _bias(torch.full((32,), 1e300, dtype=torch.float64)),
            "NaN or infinity in 'aggregation.stem",
        ),
    ],
)
@pytest.mark.parametrize("original", ["hourglass"], indirect=True)
@pytest.mark.filterwarnings("ignore:.*deprecated")
def test_anything_else_is_refused_in_one_line(tmp_path, original, change, message):
    state = dict(original[0])
    change(state)
    path = tmp_path / "other.tar"
    torch.save({"state_dict": state}, path)
    with pytest.raises(ValueError, match=message) as caught:
        load_model(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_compressed_checkpoints_are_not_unpacked(tmp_path):
    """Torch writes none; a few bytes could become any number."""
    torch.save({"state_dict": {"weight": torch.zeros(2**20)}}, tmp_path / "plain.tar")
    packed = tmp_path / "packed.tar"
    with (
        zipfile.ZipFile(tmp_path / "plain.tar") as plain,
        zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive,
    ):
        for name in plain.namelist():
            archive.writestr(name, plain.read(name))
    assert "weight" in torch.load(packed, weights_only=True)["state_dict"]
    with pytest.raises(ValueError, match="neither safetensors nor a checkpoint"):
        load_model(packed)


class Payload:
    def __reduce__(self):
        return (print, ("executed",))


def test_unsafe_pickles_are_not_executed(tmp_path, capsys):
    path = tmp_path / "evil.tar"
    torch.save({"state_dict": {"weight": Payload()}}, path)
    with pytest.raises(ValueError, match="neither safetensors nor a checkpoint"):
        load_model(path)
    assert "executed" not in capsys.readouterr().out
