"""Packed models compute what unpacked ones do, from as many bytes as their file has."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.quantised.tiny import llama
from zerograd.quantised import Gain, PackedEmbedding, PackedLinear, gguf, load, models
from zerograd.spaces.collect import named_parameters
from zerograd.text.models import loading


@pytest.fixture(scope="module", params=["tied", "untied"])
def file(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return llama(tmp_path_factory.mktemp("model") / "tiny.gguf", tied=request.param == "tied")


@pytest.fixture(scope="module")
def unpacked(file: Path) -> Any:
    return loading.load(str(file), torch.float32).model


IDS = torch.arange(24).view(3, 8) * 7 % 250


def test_logits_have_the_bits_of_the_unpacked_model(file: Path, unpacked: Any) -> None:
    with torch.no_grad():
        assert torch.equal(load(file, torch.float32)(IDS).logits, unpacked(IDS).logits)


def test_every_matrix_stays_packed_in_the_bytes_of_its_file(file: Path) -> None:
    said: list[str] = []
    model, header = load(file, torch.float32, say=said.append), gguf.header(file)
    packed = {id(module.weight): module for _, module in models.packed_modules(model)}
    assert not said
    assert sum(module.weight.nbytes for module in packed.values()) == sum(e.nbytes for e in header.tensors if e.type)
    assert {type(module) for _, module in models.packed_modules(model)} == {PackedEmbedding, PackedLinear}
    assert all(p.ndim == 1 for p in model.parameters())
    head, table = model.get_output_embeddings(), model.get_input_embeddings()
    assert (head.weight is table.weight) == ("output.weight" not in {e.name for e in header.tensors})


def test_tensors_are_counted_as_in_the_unpacked_model(file: Path, unpacked: Any) -> None:
    names = [name for name, _, _ in named_parameters(unpacked)]
    assert [name for name, _, _ in named_parameters(load(file))] == names
    gained = [name for name, _, _ in named_parameters(load(file, gains=r"q_proj"))]
    assert gained == [name.replace("q_proj.weight", "q_proj.gain") for name in names]


def test_chosen_matrices_are_unpacked_to_what_the_unpacked_model_has(file: Path, unpacked: Any) -> None:
    model = load(file, torch.float32, unpack=r"layers\.1\..*(q|v)_proj|layers\.1\.input_layernorm")
    there, trained = dict(unpacked.named_parameters()), [name for name, p in model.named_parameters() if p.requires_grad]
    assert len(trained) == 3
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, there[name]), name
    with torch.no_grad():
        assert torch.equal(model(IDS).logits, unpacked(IDS).logits)


def test_gains_of_zero_change_nothing_and_others_scale_their_blocks(file: Path, unpacked: Any) -> None:
    model = load(file, torch.float32, gains=r"layers\.1\..*(q|down)_proj|embed_tokens")
    gains = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert all(isinstance(p, Gain) and p.dtype == torch.float32 for p in gains.values())
    with torch.no_grad():
        assert torch.equal(model(IDS).logits, unpacked(IDS).logits)
        changed = copy.deepcopy(unpacked)
        for name, gain in gains.items():
            gain.normal_(0, 0.1, generator=torch.Generator().manual_seed(3))
            weight = changed.get_parameter(name.replace(".gain", ".weight"))
            weight.copy_((weight.view(*gain.shape, -1) * (1 + gain)[..., None]).view(weight.shape))
        torch.testing.assert_close(model(IDS).logits, changed(IDS).logits, rtol=1e-5, atol=1e-5)


def test_a_copy_of_a_gain_is_one(file: Path) -> None:
    model = copy.deepcopy(load(file, gains="q_proj"))
    gain = next(p for p in model.parameters() if p.requires_grad)
    assert isinstance(gain, Gain)
    assert (gain.unit, gain.multiplies, gain.read_as) == (1.0, 32, torch.bfloat16)


def test_gradients_and_tangents_pass_a_packed_matrix(file: Path, unpacked: Any) -> None:
    """As for adapters on a packed base, and methods that differentiate."""
    model, there = load(file, torch.float32), copy.deepcopy(unpacked).requires_grad_(False)
    embedded = unpacked.get_input_embeddings()(IDS).detach()
    found = []
    for one in (model, there):
        x = embedded.clone().requires_grad_(True)
        one(inputs_embeds=x).logits.square().mean().backward()
        found.append(x.grad)
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-6)
    from torch.autograd import forward_ad

    tangents = []
    for one in (model, there):
        with forward_ad.dual_level(), torch.no_grad(), torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            dual = forward_ad.make_dual(embedded, torch.ones_like(embedded))
            tangents.append(forward_ad.unpack_dual(one(inputs_embeds=dual).logits).tangent)
    torch.testing.assert_close(tangents[0], tangents[1], rtol=1e-4, atol=1e-4)


def test_gradients_of_gains_are_those_of_plain_operations(file: Path) -> None:
    model = load(file, torch.float32, gains=r"up_proj")
    layer = model.model.layers[0].mlp.up_proj
    x = torch.randn(5, 64, generator=torch.Generator().manual_seed(0))
    layer(x).square().sum().backward()
    gain = layer.gain.detach().clone().requires_grad_(True)
    plain = models.unpacked(layer.weight, models.BY_TYPE[gguf.header(file)["blk.0.ffn_up.weight"].type], torch.float32)
    (x @ (plain.view(*gain.shape, -1) * (1 + gain)[..., None]).view(plain.shape).t()).square().sum().backward()
    torch.testing.assert_close(layer.gain.grad, gain.grad, rtol=1e-4, atol=1e-4)


def test_a_tensor_that_the_model_holds_otherwise_is_unpacked_and_said(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import modeling_gguf_pytorch_utils as names

    class Turned(names.TensorProcessor):
        def process(self, weights: Any, name: str, **kwargs: Any) -> Any:
            return names.GGUFTensor(weights[:, ::-1] if "attn_output" in name else weights, name, {})

    monkeypatch.setitem(names.TENSOR_PROCESSORS, "llama", Turned)
    said: list[str] = []
    model = load(file, torch.float32, say=said.append)
    assert len(said) == 2
    assert "tensor blk.0.attn_output.weight in another form than the file; its 16,384 bytes are unpacked" in said[0]
    assert isinstance(model.model.layers[0].self_attn.o_proj.weight, nn.Parameter)


def test_a_subclass_of_a_table_keeps_what_its_forward_adds() -> None:
    from tests.quantised.tiny import random_rows
    from zerograd.quantised import FORMATS, pack

    class Scaled(nn.Embedding):
        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return super().forward(ids) * 8

    blocks = random_rows(FORMATS["Q8_0"], 5, 32)
    table = Scaled(5, 32)
    pack(table, blocks, FORMATS["Q8_0"], torch.float32)
    assert isinstance(table, Scaled)
    assert torch.equal(table(torch.tensor([3, 1])), FORMATS["Q8_0"].unpacked(blocks)[[3, 1]] * 8)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "both": ({"unpack": "q_proj", "gains": "k_proj"}, "unpack is 'q_proj' and gains 'k_proj'; give one of them"),
    "nothing matches": ({"unpack": "query"}, "unpack 'query' matches no matrix of"),
    "no matrix matches": ({"gains": "layernorm"}, "gains 'layernorm' matches no matrix of"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_wrong_choice_is_one_line(case: str, file: Path) -> None:
    options, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        load(file, **options)


def test_a_file_of_an_architecture_without_names_is_refused(tmp_path: Path) -> None:
    import gguf as library

    writer = library.GGUFWriter(str(tmp_path / "odd.gguf"), "no-such-model")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(ValueError, match="transformers has no names for architecture no-such-model"):
        load(tmp_path / "odd.gguf")
    with pytest.raises(FileNotFoundError, match="is not there"):
        load(tmp_path / "none.gguf")
