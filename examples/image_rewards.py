"""An image classifier on what its mistakes cost: python examples/image_rewards.py [STEPS]

The cost of the class that is chosen has no gradient: missing class 0 costs ten times as much as any other mistake, and always
choosing it costs 0.75. The model is tiny and random; a real one takes the same lines, with 32 images and 4 directions each a step.
"""

import sys

import torch
from transformers import ResNetConfig, ResNetForImageClassification

import zerograd as zg

CLASSES = 4
torch.manual_seed(0)
config = ResNetConfig(num_channels=1, embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", num_labels=CLASSES)
model = ResNetForImageClassification(config).eval()
COSTS = torch.ones(CLASSES, CLASSES) - torch.eye(CLASSES)
COSTS[0] *= 10  # of missing class 0


def cost(batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """What the chosen class of each image costs."""
    return COSTS[batch["labels"], model(pixel_values=batch["images"]).logits.argmax(1)]


def loss(batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Smooth, so the forward is checked on it."""
    return torch.nn.functional.cross_entropy(model(pixel_values=batch["images"]).logits, batch["labels"], reduction="none")


labels = torch.arange(64) % CLASSES
images = torch.randn(64, 1, 16, 16) + 1.5 * torch.randn(CLASSES, 1, 16, 16)[labels]
batch = {"images": images, "labels": labels}
opt = zg.optim.Evolution(model, lr=0.05, eps=0.05, directions=4)
opt.attach(loss, batch)
print(f"cost {float(opt.evaluate(cost, batch).mean()):.3f}")
for step in range(int(sys.argv[1]) if len(sys.argv) > 1 else 150):
    mean = opt.step(cost, batch)
    if step % 25 == 24:
        print(f"step {step + 1}: members {mean:.3f}")
print(f"cost {float(opt.evaluate(cost, batch).mean()):.3f}")
