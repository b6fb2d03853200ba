"""Stand in for torchdistill's example script for image classification if it cannot be cloned.

The script is only in the repository of torchdistill, not in its package. This program makes the
same calls of the package from the same YAML file: networks by their keys, the distillation box, an
epoch of `forward_process` and `post_forward_process`, validation after every epoch, the best
weights kept, loaded again and tested. It is run with the Python that has torchdistill.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from torchdistill.common import yaml_util
from torchdistill.common.main_util import import_dependencies, load_ckpt, save_ckpt, set_seed
from torchdistill.core.distillation import get_distillation_box
from torchdistill.datasets.util import build_data_loader
from torchdistill.models.registry import get_model


def main() -> None:
    """Train the student of `--config` and print its accuracy on the test images."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", required=True)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    set_seed(arguments.seed)
    config = yaml_util.load_yaml_file(arguments.config)
    import_dependencies(config["dependencies"])
    device, models = torch.device(arguments.device), config["models"]
    teacher = _network(models["teacher_model"], device)
    student = _network(models["student_model"], device)
    kept = models["student_model"]["dst_ckpt"]
    _train(teacher, student, kept, config, device)
    load_ckpt(kept, model=student, strict=True)
    test = config["test"]["test_data_loader"]
    loader = build_data_loader(config["datasets"][test["dataset_id"]], test, False)
    print(f" * Acc@1 {_accuracy(student, loader, device):.4f}")


def _network(config: dict[str, Any], device: torch.device) -> torch.nn.Module:
    network = get_model(config["key"], None, **config["kwargs"])
    load_ckpt(config.get("src_ckpt"), model=network, strict=True)
    return network.to(device)


def _train(
    teacher: torch.nn.Module,
    student: torch.nn.Module,
    kept: str,
    config: dict[str, Any],
    device: torch.device,
) -> None:
    box = get_distillation_box(
        teacher, student, config["datasets"], config["train"], device, None, False, 1
    )
    best = 0.0
    for epoch in range(box.num_epochs):
        box.pre_epoch_process(epoch=epoch)
        for images, labels, supplement in box.train_data_loader:
            images, labels = images.to(device), labels.to(device)
            loss = box.forward_process(images, labels, supplement)
            box.post_forward_process(loss=loss)
        accuracy = _accuracy(student, box.val_data_loader, device)
        if accuracy > best:
            best = accuracy
            save_ckpt(student, box.optimizer, box.lr_scheduler, best, None, kept)
        box.post_epoch_process()
    box.clean_modules()


@torch.inference_mode()
def _accuracy(network: torch.nn.Module, loader: Any, device: torch.device) -> float:
    network.eval()
    right = 0
    for batch in loader:
        images, labels = batch[0].to(device), batch[1].to(device)
        right += int((network(images).argmax(dim=1) == labels).sum())
    return 100 * right / len(loader.dataset)


if __name__ == "__main__":
    main()
