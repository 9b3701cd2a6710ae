"""A speech model on its word error rate: python examples/speech_rewards.py [STEPS]

A loss that falls while the word error rate rises is a known complaint; here the rate itself is trained. The model is tiny and
random, and "words" are tokens. With a real one, such as openai/whisper-tiny, give it log-mel features of recordings, decode to
words, and take 16 recordings and 2 directions each a step; a step then costs 64 generations of the longest answer.
"""

import sys

import torch
from transformers import WhisperConfig, WhisperForConditionalGeneration

import zerograd as zg

START, END, TOKENS = 1, 2, 12
torch.manual_seed(0)
config = WhisperConfig(
    vocab_size=64, d_model=32, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2,
    encoder_ffn_dim=48, decoder_ffn_dim=48, num_mel_bins=8, max_source_positions=20, max_target_positions=32, pad_token_id=0,
    bos_token_id=START, eos_token_id=END, decoder_start_token_id=START, suppress_tokens=None, begin_suppress_tokens=None,
    init_std=0.2,
)  # fmt: skip
model = WhisperForConditionalGeneration(config).eval()


def distance(said: list[int], wanted: list[int]) -> int:
    """Words to insert, leave out or change."""
    row = list(range(len(wanted) + 1))
    for i, one in enumerate(said, 1):
        before, row[0] = row[0], i
        for j, other in enumerate(wanted, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (one != other))
    return row[-1]


def words(row: list[int]) -> list[int]:
    return [token for token in row[1:] if token > END]


def word_error_rate(batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Of each recording, of what the model writes; no gradient passes here."""
    said = model.generate(input_features=batch["features"], max_length=TOKENS + 1, do_sample=False, num_beams=1).tolist()
    pairs = zip(said, batch["labels"].tolist(), strict=True)
    return torch.tensor([distance(words(one), words(other)) / max(1, len(words(other))) for one, other in pairs])


def loss(batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Of a given answer: smooth, so the forward is checked on it."""
    logits = model(input_features=batch["features"], decoder_input_ids=batch["labels"][:, :-1]).logits.float()
    return torch.nn.functional.cross_entropy(logits.transpose(1, 2), batch["labels"][:, 1:], reduction="none").mean(1)


batch = {"features": torch.randn(16, 8, 40), "labels": torch.randint(3, 12, (16, TOKENS))}
batch["labels"][:, 0] = START
opt = zg.optim.Evolution(model, lr=0.05, eps=0.05, directions=2)
opt.attach(loss, batch)
print(f"word error rate {float(opt.evaluate(word_error_rate, batch).mean()):.3f}")
for step in range(int(sys.argv[1]) if len(sys.argv) > 1 else 60):
    rate = opt.step(word_error_rate, batch)
    if step % 10 == 9:
        print(f"step {step + 1}: members {rate:.3f}")
print(f"word error rate {float(opt.evaluate(word_error_rate, batch).mean()):.3f}")
