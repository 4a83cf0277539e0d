import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

from ea_psmnet import PSMNetConfig, build_model
from ea_psmnet.models import weights
from ea_psmnet.models.weights import find_weights, load_into, load_model, save_model

ROOT = Path(__file__).parents[2]
CONFIG = PSMNetConfig(
    max_disparity=32,
    width=0.25,
    attention="efficient",
    attention_sites=("encoder",),
    attention_options={"heads": 2},
)


def images():
    generator = torch.Generator().manual_seed(8)
    return [torch.rand(1, 3, 32, 64, generator=generator) for _ in range(2)]


def test_weights_and_configuration_come_back(tmp_path):
    model = build_model(CONFIG).eval()
    save_model(tmp_path / "model.safetensors", model)
    loaded = load_model(tmp_path / "model.safetensors")
    assert loaded.config == CONFIG
    assert not loaded.training
    with torch.no_grad():
        assert torch.equal(loaded(*images()).disparity, model(*images()).disparity)


def test_a_folder_stands_for_its_weights(tmp_path):
    def filled(name, *files):
        for file in files:
            path = tmp_path / name / file
            path.parent.mkdir(exist_ok=True)
            path.touch()
        return tmp_path / name

    run = filled("run", "best.safetensors", "config.json", "model.safetensors")
    assert find_weights(run) == run / "model.safetensors"
    one = filled("one", "notes.txt", "psmnet.tar")
    assert find_weights(str(one)) == one / "psmnet.tar"
    with pytest.raises(ValueError, match=r"name one of a\.safetensors, b\.tar"):
        find_weights(filled("two", "a.safetensors", "b.tar"))
    with pytest.raises(FileNotFoundError, match="this folder holds no weights"):
        find_weights(filled("none", "config.json"))


def test_others_may_read_the_file(tmp_path):
    save_model(tmp_path / "m.safetensors", build_model(CONFIG))
    (tmp_path / "plain").touch()
    modes = [(tmp_path / name).stat().st_mode for name in ("m.safetensors", "plain")]
    assert modes[0] == modes[1]


def test_half_precision_halves_the_file_and_keeps_the_statistics(tmp_path):
    model = build_model(CONFIG)
    for name, buffer in model.named_buffers():
        if name.endswith("running_var"):
            buffer.fill_(1e6)  # float16 ends at 65,504
    for half in (False, True):
        save_model(tmp_path / f"{half}.safetensors", model, half=half)
    sizes = [(tmp_path / f"{half}.safetensors").stat().st_size for half in (False, True)]
    assert sizes[1] < 0.65 * sizes[0]
    loaded = load_model(tmp_path / "True.safetensors")
    for name, tensor in loaded.state_dict().items():
        assert tensor.dtype != torch.float16
        torch.testing.assert_close(tensor, model.state_dict()[name], rtol=1e-3, atol=1e-4)


def test_saved_names_are_a_contract(tmp_path):
    save_model(tmp_path / "m.safetensors", build_model(CONFIG))
    state = safetensors.torch.load_file(tmp_path / "m.safetensors")
    expected = {
        "features.stem.0.0.weight": (8, 3, 3, 3),
        "features.stages.1.0.shortcut.0.weight": (16, 8, 1, 1),
        "features.pyramid.3.0.0.weight": (8, 32, 1, 1),
        "features.fuse.2.weight": (8, 32, 1, 1),
        "aggregation.stem.0.0.weight": (8, 16, 3, 3, 3),
        "aggregation.residuals.0.2.1.running_mean": (8,),
        "aggregation.hourglasses.2.up1.0.weight": (16, 8, 3, 3, 3),
        "aggregation.hourglasses.0.attention.encoder.queries.weight": (8, 16, 1, 1, 1),
        "aggregation.classifiers.2.2.weight": (1, 8, 3, 3, 3),
    }
    assert {name: tuple(state[name].shape) for name in expected} == expected
    with safetensors.safe_open(tmp_path / "m.safetensors", framework="pt") as file:
        assert json.loads(file.metadata()["ea_psmnet"])["attention_options"] == {"heads": 2}


def test_another_disparity_range_keeps_the_weights(tmp_path):
    save_model(tmp_path / "m.safetensors", build_model(CONFIG))
    assert load_model(tmp_path / "m.safetensors", max_disparity=64).config.max_disparity == 64


def test_a_plain_network_starts_one_with_attention(tmp_path):
    plain = build_model(PSMNetConfig(max_disparity=32, width=0.25)).eval()
    save_model(tmp_path / "plain.safetensors", plain)
    model = build_model(CONFIG).eval()
    load_into(model, tmp_path / "plain.safetensors")
    with torch.no_grad():
        torch.testing.assert_close(model(*images()), plain(*images()), rtol=0, atol=0)
    save_model(tmp_path / "attention.safetensors", model)
    with pytest.raises(ValueError, match="has efficient attention, and the network none"):
        load_into(plain, tmp_path / "attention.safetensors")


def test_attention_can_be_left_out(tmp_path):
    plain = build_model(PSMNetConfig(max_disparity=32, width=0.25)).eval()
    save_model(tmp_path / "plain.safetensors", plain)
    model = build_model(replace(CONFIG, attention_options={"start": "published"})).eval()
    load_into(model, tmp_path / "plain.safetensors")
    save_model(tmp_path / "attention.safetensors", model)
    without = load_model(tmp_path / "attention.safetensors", attention=False)
    assert without.config == plain.config
    with torch.no_grad():
        assert torch.equal(without(*images()).disparity, plain(*images()).disparity)
        assert not torch.allclose(model(*images()).disparity, plain(*images()).disparity, atol=1e-3)


def test_files_that_are_no_such_weights_are_named(tmp_path):
    path = tmp_path / "model.safetensors"
    with pytest.raises(FileNotFoundError, match="no such checkpoint"):
        load_model(path)
    path.write_bytes(b"not safetensors at all")
    with pytest.raises(ValueError, match="not a readable safetensors file"):
        load_model(path)
    safetensors.torch.save_file({"weight": torch.zeros(3)}, path)
    with pytest.raises(ValueError, match="the file holds no configuration"):
        load_model(path)
    save_model(path, build_model(CONFIG))
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(ValueError, match="not a readable safetensors file"):
        load_model(path)


@pytest.mark.parametrize(
    "header",
    [
        "5",
        "{",
        "null",
        "[" * 100_000,
        '{"attention_options": ' + "[" * 100_000,
        '{"colour": 1}',
        '{"width": 1e999}',
        '{"width": 1000000}',
        '{"align_corners": 1}',
        '{"max_disparity": "a"}',
        '{"max_disparity": 32.0}',
        '{"width": null}',
        '{"attention_sites": 5}',
        '{"attention": "efficient", "attention_sites": ["encoder"], "attention_options": 5}',
        '{"attention": "efficient", "attention_sites": ["encoder"], '
        '"attention_options": {"heads": "x"}}',
        '{"attention": "efficient", "attention_sites": ["encoder"], '
        '"attention_options": {"key_channels": 1000000000000000000000000000000}}',
    ],
)
def test_hostile_headers_are_refused_in_one_line(tmp_path, header):
    path = tmp_path / "model.safetensors"
    safetensors.torch.save_file({"w": torch.zeros(1)}, path, metadata={"ea_psmnet": header})
    with pytest.raises(ValueError, match="its configuration is damaged") as caught:
        load_model(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"hello world, no pickle", b"\x80\x02.", b"h\x05."])
def test_odd_bytes_are_no_checkpoint(tmp_path, content):
    path = tmp_path / "model.tar"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="neither safetensors nor") as caught:
        load_model(path)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_a_configuration_that_the_tensors_do_not_have_takes_no_memory(tmp_path):
    """Half a kilobyte that describes gigabytes, built without them in a process of its own."""
    expected = {"8": "lacks 'aggregation.", "40": "width 40.0 or 192 disparities are more"}
    paths = [tmp_path / f"{width}.safetensors" for width in expected]
    for path, width in zip(paths, expected, strict=True):
        header = {"ea_psmnet": f'{{"width": {width}}}'}
        safetensors.torch.save_file({"w": torch.zeros(1)}, path, metadata=header)
    code = """
import resource, sys
from ea_psmnet.models.weights import load_model
for path in sys.argv[1:]:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        load_model(path)
    except ValueError as error:
        print(error)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
assert "torch._dynamo" not in sys.modules  # that takes seconds
"""
    command = [sys.executable, "-c", code, *paths]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    lines = run.stdout.splitlines()
    for message, told, grown in zip(expected.values(), lines[::2], lines[1::2], strict=True):
        assert message in told
        assert int(grown) < 100_000  # KiB; the wider network has 300 million numbers


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn, torch.bool, torch.uint64])
def test_tensors_of_other_types_are_refused(tmp_path, dtype):
    path = tmp_path / "m.safetensors"
    model = build_model(CONFIG)
    state = model.state_dict() | {"features.stem.0.0.weight": torch.ones(8, 3, 3, 3).to(dtype)}
    header = {"ea_psmnet": json.dumps(CONFIG.to_dict())}
    safetensors.torch.save_file(state, path, metadata=header)
    with pytest.raises(ValueError, match="no dense numbers of its type for 'features"):
        load_model(path)


def test_a_tensor_without_elements_starts_no_wider_network(tmp_path):
    path = tmp_path / "m.safetensors"
    narrow = build_model(PSMNetConfig(max_disparity=32, width=0.25))
    state = narrow.state_dict() | {"features.stem.0.0.weight": torch.zeros(0, 3, 3, 3)}
    header = {"ea_psmnet": json.dumps(narrow.config.to_dict())}
    safetensors.torch.save_file(state, path, metadata=header)
    with pytest.raises(ValueError, match=r"the wrong shape for 'features.stem.0.0.weight'"):
        load_into(build_model(PSMNetConfig(max_disparity=32, width=0.5)), path)


def test_weights_that_are_not_finite_are_refused(tmp_path):
    model = build_model(CONFIG)
    model.features.stem[0][0].weight.data[0] = float("nan")
    save_model(tmp_path / "m.safetensors", model)
    with pytest.raises(ValueError, match=r"NaN or infinity in 'features.stem.0.0.weight'"):
        load_model(tmp_path / "m.safetensors")


def test_bundled_weights_go_by_their_name(tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "BUNDLED", tmp_path)
    for name in ("small", "large"):
        save_model(tmp_path / f"{name}.safetensors", build_model(CONFIG))
    assert find_weights("small") == tmp_path / "small.safetensors"
    assert load_model("small").config == CONFIG
    monkeypatch.chdir(tmp_path)
    save_model("small", build_model(CONFIG))  # a file goes before a name
    assert find_weights("small") == Path("small")
    for path in ("middle", "checkpoints/small", tmp_path / "x" / "large", "large.safetensor"):
        with pytest.raises(FileNotFoundError, match=f"{path}: no such.* bundled are large, small$"):
            find_weights(path)


EFFICIENT = {
    "attention": "efficient",
    "attention_sites": ("encoder", "volume"),
    "attention_options": {"heads": 2},
}


def trained_like(**options):
    """A network with statistics and attention that are not at their start."""
    torch.manual_seed(3)
    network = build_model(PSMNetConfig(max_disparity=32, **options)).eval()
    for name, tensor in network.state_dict().items():
        if "running_var" in name:
            tensor.uniform_(0.5, 2)
        elif tensor.is_floating_point() and ("running_mean" in name or "attention" in name):
            tensor.normal_(std=0.3)
    return network


def grown(narrow, path, width, **options):
    save_model(path, narrow)
    wide = build_model(PSMNetConfig(max_disparity=32, width=width, **options)).eval()
    load_into(wide, path)
    return wide


@pytest.mark.parametrize("width", [0.25, 0.375])
@pytest.mark.parametrize("options", [{}, {"aggregation": "basic"}, EFFICIENT])
def test_it_starts_as_the_same_function(tmp_path, width, options):
    narrow = trained_like(width=0.125, **options)
    wide = grown(narrow, tmp_path / "narrow.safetensors", width, **options)
    with torch.no_grad():
        before, after = (
            net.double()(*(x.double() for x in images())).disparity for net in (narrow, wide)
        )
    torch.testing.assert_close(after, before, rtol=0, atol=5e-3)
    assert before.std() > 0.01


def test_the_copies_part_in_training(tmp_path):
    wide = grown(trained_like(width=0.125), tmp_path / "narrow.safetensors", 0.25).train()
    sum(d.sum() for d in wide(*images()).disparities).backward()
    convolutions = [m.weight.grad for m in wide.modules() if isinstance(m, nn.Conv3d | nn.Conv2d)]
    pairs = [(g[0::2], g[1::2]) for g in convolutions if len(g) > 1]
    assert len(pairs) > 50
    # The pyramid reads so small a picture that normalisation leaves nothing of it.
    assert all(not torch.allclose(a, b) for a, b in pairs if a.abs().max() > 1e-6)


@pytest.mark.parametrize(
    ("narrow", "width", "options", "message"),
    [
        ({"width": 0.25}, 0.375, {}, "width 0.25 can be widened to multiples, not to 0.375"),
        (
            {"normalisation": "group", "width": 0.25},
            0.5,
            {},
            "only networks with batch normalisation",
        ),
        (
            EFFICIENT | {"attention_options": {"normalisation": "scaling"}, "width": 0.25},
            0.5,
            EFFICIENT,
            "attention 'efficient' changes",
        ),
        (
            EFFICIENT | {"attention_options": {"positions": 1}, "width": 0.25},
            0.5,
            EFFICIENT | {"attention_options": {"positions": 1}},
            "without positions",
        ),
    ],
)
def test_what_would_change_is_refused(tmp_path, narrow, width, options, message):
    path = tmp_path / "narrow.safetensors"
    with pytest.raises(ValueError, match=message) as refused:
        grown(trained_like(**narrow), path, width, **options)
    assert str(refused.value).startswith(str(path))


def test_a_mechanism_left_behind_does_not_stand_in_the_way(tmp_path):
    options = {"attention": "dot_product", "attention_sites": ("encoder",)}
    save_model(tmp_path / "n.safetensors", trained_like(width=0.125, **options))
    wide = build_model(PSMNetConfig(max_disparity=32, width=0.25))
    load_into(wide, tmp_path / "n.safetensors", attention=False)
    with pytest.raises(ValueError, match="has dot_product attention, and the network none"):
        load_into(wide, tmp_path / "n.safetensors")
