"""Small GGUF files of random Llamas, as llama.cpp's converter writes them, and blocks of random bytes."""

from __future__ import annotations

import functools
from pathlib import Path

import gguf
import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from zerograd.quantised.formats import FORMATS, Format

TYPES = {"attn_q": "Q4_1", "attn_k": "Q4_0", "attn_v": "Q5_0", "attn_output": "Q5_1", "ffn_gate": "Q4_1", "ffn_up": "Q4_0"}
"""Types of a file's matrices by their names; the others are Q8_0."""

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


def random_rows(format: Format, rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    """Blocks of random bytes whose scales are small finite numbers of either sign, some of them 0."""
    generator = torch.Generator().manual_seed(seed)
    made = torch.randint(0, 256, (rows, format.row_bytes(columns)), generator=generator).to(torch.uint8)
    blocks = format.blocks(made)
    for at in format.scales:
        scales = torch.randn(rows, blocks.shape[1], 1, generator=generator) * 0.02
        scales[torch.rand(scales.shape, generator=generator) < 0.05] = 0
        blocks[..., at : at + 2] = scales.to(torch.float16).view(torch.uint8)
    return made


@functools.cache
def llama(path: Path, *, tied: bool = True, layers: int = 2, seed: int = 0) -> Path:
    """A Llama of 64 features with its tokenizer of bytes."""
    torch.manual_seed(seed)
    alphabet = [*SPECIAL, *_characters_of_bytes()]
    size = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = LlamaConfig(
        vocab_size=len(alphabet) + 1, num_hidden_layers=layers, initializer_range=0.2, tie_word_embeddings=tied, **size
    )
    model = LlamaForCausalLM(config)
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_name("tiny")
    writer.add_block_count(layers)
    writer.add_context_length(512)
    writer.add_embedding_length(64)
    writer.add_feed_forward_length(96)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_vocab_size(config.vocab_size)
    writer.add_rope_dimension_count(16)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list([*alphabet, "th"])
    writer.add_token_types([3] * len(SPECIAL) + [1] * (len(alphabet) - len(SPECIAL) + 1))
    writer.add_token_merges(["t h"])
    for name, number in (("bos", 1), ("eos", 2), ("unk", 0), ("pad", 2)):
        getattr(writer, f"add_{name}_token_id")(number)
    writer.add_tensor("rope_freqs.weight", np.linspace(1, 2, 8, dtype=np.float32))
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, layers)
    for name, value in model.state_dict().items():
        own = names.get_name(name.removesuffix(".weight"))
        if tied and own == "output":
            continue
        data = value.numpy()
        if own.endswith(("attn_q", "attn_k")):
            heads = 4 if own.endswith("attn_q") else 2
            data = data.reshape(heads, 2, -1, data.shape[1]).swapaxes(1, 2).reshape(data.shape)
        if data.ndim == 1:
            writer.add_tensor(f"{own}.weight", data)
            continue
        kind = gguf.GGMLQuantizationType[TYPES.get(own.rpartition(".")[2], "Q8_0")]
        writer.add_tensor(f"{own}.weight", gguf.quants.quantize(np.ascontiguousarray(data), kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _characters_of_bytes() -> list[str]:
    """The printable character that stands for each byte in byte-level vocabularies."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = iter(range(256, 512))
    return [chr(byte) if byte in plain else chr(next(others)) for byte in range(256)]


ALL = tuple(FORMATS)
