"""Headers of GGUF files as the library reads them, refusals of one line, and patched copies."""

from __future__ import annotations

import itertools
import struct
from collections.abc import Callable
from pathlib import Path

import gguf as library
import pytest
import torch

from tests.quantised.tiny import llama
from zerograd.quantised import encode, gguf
from zerograd.quantised.formats import FORMATS


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return llama(tmp_path_factory.mktemp("gguf") / "tiny.gguf")


def test_a_header_is_what_the_library_reads(file: Path) -> None:
    header, reader = gguf.header(file), library.GGUFReader(str(file))
    assert [e.name for e in header.tensors] == [t.name for t in reader.tensors]
    for entry, tensor in zip(header.tensors, reader.tensors, strict=True):
        assert entry.shape == tuple(int(n) for n in reversed(tensor.shape))
        assert (entry.type, entry.start, entry.nbytes) == (tensor.tensor_type.value, tensor.data_offset, tensor.n_bytes)
        assert header.read(entry).view(torch.uint8).flatten().tolist() == tensor.data.view("uint8").flatten().tolist()
    assert header.values["general.architecture"] == "llama"
    assert header.values["llama.block_count"] == 2


def test_a_copy_without_changes_has_the_bytes_of_its_base(file: Path, tmp_path: Path) -> None:
    gguf.write_patched(gguf.header(file), tmp_path / "copy.gguf", {})
    assert (tmp_path / "copy.gguf").read_bytes() == file.read_bytes()


def test_a_tensor_of_other_bytes_changes_these_bytes_alone(file: Path, tmp_path: Path) -> None:
    header, out = gguf.header(file), tmp_path / "out.gguf"
    entry = header["blk.1.attn_q.weight"]
    gguf.write_patched(header, out, {entry.name: (entry.type, lambda: header.read(entry) ^ 1)})
    before, after = file.read_bytes(), out.read_bytes()
    different = [i for i, (one, other) in enumerate(zip(before, after, strict=True)) if one != other]
    assert different == list(range(entry.start, entry.start + entry.nbytes))


def test_a_tensor_of_another_type_moves_the_others_and_leaves_their_bytes(file: Path, tmp_path: Path) -> None:
    header, out = gguf.header(file), tmp_path / "out.gguf"
    entry = header["blk.0.attn_q.weight"]
    packed = encode.packed(FORMATS["Q4_1"].unpacked(header.read(entry)), FORMATS["Q8_0"])
    gguf.write_patched(header, out, {entry.name: (8, lambda: packed)})
    reader = library.GGUFReader(str(out))
    assert [t.name for t in reader.tensors] == [e.name for e in header.tensors]
    for one, tensor in zip(header.tensors, reader.tensors, strict=True):
        expected = packed if one.name == entry.name else header.read(one).view(torch.uint8)
        assert tensor.data_offset % 32 == 0
        assert tensor.data.view("uint8").flatten().tolist() == expected.flatten().tolist(), one.name
    assert [f for f in reader.fields if not f.startswith("GGUF")] == [
        f for f in library.GGUFReader(str(file)).fields if not f.startswith("GGUF")
    ]


def test_a_write_that_fails_leaves_no_file(file: Path, tmp_path: Path) -> None:
    header = gguf.header(file)

    def full() -> torch.Tensor:
        raise OSError("No space left on device")

    entry = header.tensors[-1]
    with pytest.raises(OSError, match="No space left"):
        gguf.write_patched(header, tmp_path / "out.gguf", {entry.name: (entry.type, full)})
    assert not list(tmp_path.iterdir())


def _set(place: Callable[[gguf.Header], int], kind: str, value: int) -> Callable[[bytes, gguf.Header], bytes]:
    def change(data: bytes, header: gguf.Header) -> bytes:
        at = place(header)
        return data[:at] + struct.pack(kind, value) + data[at + struct.calcsize(kind) :]

    return change


DAMAGED: dict[str, tuple[Callable[[bytes, gguf.Header], bytes], str]] = {
    "other magic": (lambda data, header: b"GGML" + data[4:], "is no GGUF file: it does not begin with GGUF"),
    "big-endian": (_set(lambda h: 4, ">I", 3), "is a big-endian GGUF file; convert it with gguf-convert-endian"),
    "version": (_set(lambda h: 4, "<I", 1), "is a GGUF file of version 1, and versions 2 and 3 are read; convert the model anew"),
    "many tensors": (_set(lambda h: 8, "<Q", 1 << 60), "is cut off or damaged in its header; fetch it again"),
    "cut in the header": (lambda data, header: data[: header.data // 2], "is cut off or damaged in its header; fetch it again"),
    "cut in the data": (lambda data, header: data[:-500], "is cut off: tensor .* ends at byte .* of .*; fetch it again"),
    "offset": (_set(lambda h: h.tensors[3].entry_at + 4, "<Q", 1 << 40), "is cut off: tensor .*blk.* ends at byte"),
    "IQ type": (
        _set(lambda h: h["blk.0.attn_q.weight"].entry_at, "<I", 23),
        r"tensor blk\.0\.attn_q\.weight has type IQ4_XS, which is not read; choose a file of F32, F16, BF16, Q4_0",
    ),
    "MXFP4": (_set(lambda h: h["blk.0.attn_k.weight"].entry_at, "<I", 39), "has type MXFP4, which is not read"),
    "unknown type": (_set(lambda h: h["blk.0.attn_k.weight"].entry_at, "<I", 77), "has type number 77, which is not read"),
    "K of a short row": (
        _set(lambda h: h["blk.0.attn_k.weight"].entry_at, "<I", 12),
        r"tensor blk\.0\.attn_k\.weight: a row of 64 weights cannot be Q4_K, whose blocks have 256",
    ),
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_damaged_file_is_refused_in_one_line_that_names_it(damage: str, file: Path, tmp_path: Path) -> None:
    change, message = DAMAGED[damage]
    bad = tmp_path / "bad.gguf"
    bad.write_bytes(change(file.read_bytes(), gguf.header(file)))
    with pytest.raises(ValueError, match=message) as caught:
        gguf.header(bad)
    assert str(bad) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_part_of_a_model_is_refused_with_the_mend(tmp_path: Path) -> None:
    writer = library.GGUFWriter(str(tmp_path / "part.gguf"), "llama")
    writer.add_uint16("split.no", 1)
    writer.add_uint16("split.count", 3)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(ValueError, match=r"is part 2 of 3 of a GGUF file; join them with llama-gguf-split --merge"):
        gguf.header(tmp_path / "part.gguf")


@pytest.mark.full
def test_a_file_cut_anywhere_in_its_header_is_one_line(file: Path, tmp_path: Path) -> None:
    data, bad = file.read_bytes(), tmp_path / "cut.gguf"
    for length in itertools.chain(range(200), range(200, gguf.header(file).data, 97)):
        bad.write_bytes(data[:length])
        with pytest.raises(ValueError, match=r"fetch it again|is no GGUF"):
            gguf.header(bad)
