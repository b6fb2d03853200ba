"""The loop of plain.py with the loss of Knowledge Representing and one's own teacher."""

from pathlib import Path

import numpy as np
import torch
from my_student import Student
from my_teacher import Teacher
from PIL import Image
from torch.utils.data import DataLoader, TensorDataset

import krscale


def load(split, shuffle):
    files = sorted(Path("photos", split).glob("*/*.png"))
    pixels = np.stack([np.asarray(Image.open(file)) for file in files])
    images = torch.tensor(pixels).permute(0, 3, 1, 2) / 255 * 2 - 1
    labels = torch.tensor([int(file.parent.name) for file in files])
    return DataLoader(TensorDataset(images, labels), batch_size=64, shuffle=shuffle)


class Larger(torch.nn.Module):
    """The teacher was trained on 40 x 40 pixels, normalised as here."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, images):
        size = (40, 40)
        larger = torch.nn.functional.interpolate(images, size, mode="bilinear", antialias=True)
        return self.network(larger)


torch.manual_seed(0)
train_loader, test_loader = load("train", True), load("test", False)
student = Student(10)
teacher = Teacher(10)
teacher.load_state_dict(torch.load("teacher.pt"))
kr = krscale.KRLoss.from_networks(Larger(teacher), student, train_loader)
parameters = [*student.parameters(), *kr.parameters()]
optimiser = torch.optim.SGD(parameters, 0.05, momentum=0.9, nesterov=True)
schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, 10)
for epoch in range(10):
    kr.begin_epoch(epoch / 9)
    student.train()
    for images, labels in train_loader:
        loss = kr(images, labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    schedule.step()
student.eval()
with torch.no_grad():
    right = sum((student(x).argmax(1) == y).sum().item() for x, y in test_loader)
print(f"test accuracy {right / len(test_loader.dataset):.4f}")
