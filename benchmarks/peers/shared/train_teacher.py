"""Train the teacher once, on photos/train alone, and print its accuracy on photos/test."""

from pathlib import Path

import numpy as np
import torch
from my_teacher import Teacher
from PIL import Image
from torch import Tensor


def load(split: str) -> tuple[Tensor, Tensor]:
    files = sorted(Path("photos", split).glob("*/*.png"))
    size, how = (40, 40), Image.Resampling.BILINEAR
    pixels = np.stack([np.asarray(Image.open(file).resize(size, how)) for file in files])
    labels = torch.tensor([int(file.parent.name) for file in files])
    return torch.tensor(pixels).permute(0, 3, 1, 2) / 255 * 2 - 1, labels


torch.manual_seed(0)
images, labels = load("train")
net = Teacher(10)
optimiser = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9, nesterov=True)
schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, 20)
for _ in range(20):
    for batch in torch.randperm(len(images)).split(64):
        shift = torch.randint(-1, 2, (2,)).tolist()
        loss = torch.nn.functional.cross_entropy(
            net(images[batch].roll(shift, (2, 3))), labels[batch]
        )
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    schedule.step()
net.eval()
torch.save(net.state_dict(), "teacher.pt")
images, labels = load("test")
with torch.no_grad():
    accuracy = (net(images).argmax(dim=1) == labels).float().mean()
print(f"test accuracy {accuracy.item():.4f}")
