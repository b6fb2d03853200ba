"""Search for the settings of KD for one student with Ray Tune, and test the best trial."""

import tempfile
from pathlib import Path

import torch
import torch.nn.functional as F
from my_student import Student
from my_teacher import Teacher
from ray import tune
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search.optuna import OptunaSearch
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision import datasets, transforms

HERE = Path(__file__).resolve().parent
NUM_EPOCHS, BATCH_SIZE, NUM_TRIALS = 10, 64, 8
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def make_loader(split: str, *augmentation: torch.nn.Module) -> DataLoader:
    steps = [*augmentation, transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
    data = datasets.ImageFolder(HERE / "photos" / split, transforms.Compose(steps))
    return DataLoader(data, BATCH_SIZE, shuffle=split == "train")


def for_teacher(images: Tensor) -> Tensor:
    """Undo the student's normalisation; scale; normalise as the teacher was trained."""
    pixels = images * torch.tensor(STD).view(3, 1, 1) + torch.tensor(MEAN).view(3, 1, 1)
    return F.interpolate(pixels, size=40, mode="bilinear", antialias=True) * 2 - 1


@torch.no_grad()
def accuracy_of(network: torch.nn.Module, loader: DataLoader) -> float:
    network.eval()
    right = sum((network(images).argmax(1) == labels).sum().item() for images, labels in loader)
    return right / len(loader.dataset)


def train(config: dict) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    teacher = Teacher(10)
    teacher.load_state_dict(torch.load(HERE / "teacher.pt"))
    teacher.eval()
    student = Student(10)
    optimiser = torch.optim.SGD(
        student.parameters(), config["lr"], momentum=0.9, nesterov=True, weight_decay=5e-4
    )
    train_loader = make_loader("train", transforms.RandomCrop(32, 1, padding_mode="edge"))
    val_loader = make_loader("val")
    num_steps = NUM_EPOCHS * len(train_loader)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, config["lr"], num_steps, pct_start=1 / NUM_EPOCHS, cycle_momentum=False
    )
    temperature = config["temperature"]
    for _ in range(NUM_EPOCHS):
        student.train()
        for images, labels in train_loader:
            with torch.no_grad():
                wanted = (teacher(for_teacher(images)) / temperature).softmax(1)
            logits = student(images)
            kd = F.kl_div((logits / temperature).log_softmax(1), wanted, reduction="batchmean")
            loss = config["ce_weight"] * F.cross_entropy(logits, labels)
            loss = loss + config["kd_weight"] * temperature**2 * kd
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
        with tempfile.TemporaryDirectory() as folder:
            torch.save(student.state_dict(), Path(folder, "student.pt"))
            checkpoint = tune.Checkpoint.from_directory(folder)
            tune.report({"accuracy": accuracy_of(student, val_loader)}, checkpoint=checkpoint)


if __name__ == "__main__":
    space = {
        "lr": tune.loguniform(0.03, 0.5),
        "temperature": tune.loguniform(1.0, 8.0),
        "kd_weight": tune.loguniform(0.3, 10.0),
        "ce_weight": tune.uniform(0.0, 1.0),
    }
    tuner = tune.Tuner(
        tune.with_resources(train, {"cpu": 1}),
        param_space=space,
        tune_config=tune.TuneConfig(
            metric="accuracy",
            mode="max",
            num_samples=NUM_TRIALS,
            search_alg=OptunaSearch(seed=0),
            scheduler=ASHAScheduler(max_t=NUM_EPOCHS, grace_period=4, reduction_factor=2),
        ),
        run_config=tune.RunConfig(name="photos", storage_path=str(HERE / "ray_results")),
    )
    best = tuner.fit().get_best_result()
    student = Student(10)
    with best.checkpoint.as_directory() as folder:
        student.load_state_dict(torch.load(Path(folder, "student.pt")))
    print(best.config)
    print(f"test accuracy {accuracy_of(student, make_loader('test')):.4f}")
