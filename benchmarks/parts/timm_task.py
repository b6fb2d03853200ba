"""Try what is possible of timm's recipe without its train.py: both networks and a step of its task.

train.py is only in the repository of timm, not in its package. This program makes both networks and
the task with the arguments that train.py passes. It prints the teacher's accuracy on images that
the task has normalised, and the loss of one step. It trains nothing, so it measures nothing.
"""

from __future__ import annotations

import my_timm  # noqa: F401 - the file of the recipe; it registers both networks
import timm
import torch
from timm.data import create_dataset, create_loader, resolve_data_config
from timm.task import LogitDistillationTask


def main() -> None:
    """Print the teacher's accuracy through the task, and a loss."""
    options = {"num_classes": 10, "in_chans": 3}
    student = timm.create_model("my_student", pretrained=False, **options)
    task = LogitDistillationTask(
        student_model=student, teacher_model="my_teacher", criterion=torch.nn.CrossEntropyLoss(),
        distill_loss_weight=0.9, task_loss_weight=0.5, temperature=4.0, device=torch.device("cpu"),
    )  # fmt: skip
    config = resolve_data_config({"input_size": (3, 32, 32), "crop_pct": 1.0}, model=student)
    loader = create_loader(
        create_dataset("", root="photos", split="test"), config["input_size"], 64,
        mean=config["mean"], std=config["std"], crop_pct=1.0, num_workers=0,
        device=torch.device("cpu"), use_prefetcher=False,
    )  # fmt: skip
    right, loss = 0, torch.tensor(0.0)
    for images, labels in loader:
        loss = task(images, labels)["loss"]
        with torch.no_grad():
            wanted = task.teacher.normalize_input(images, task.student_mean, task.student_std)
            right += int((task.teacher(wanted).argmax(dim=1) == labels).sum())
    loss.backward()
    print(f"teacher accuracy {right / len(loader.dataset):.4f}, loss {loss.item():.3f}")


if __name__ == "__main__":
    main()
