"""The teacher: a class of one's own, trained on 40 x 40 pixels in -1..1."""

from torch import Tensor, nn


class Teacher(nn.Module):
    def __init__(self, n_classes: int, width: int = 32) -> None:
        super().__init__()
        sizes = [3, width, 2 * width, 2 * width]
        self.blocks = nn.Sequential(
            *(
                nn.Sequential(nn.Conv2d(a, b, 3, 2, 1), nn.BatchNorm2d(b), nn.ReLU())
                for a, b in zip(sizes, sizes[1:], strict=False)
            )
        )
        self.head = nn.Linear(2 * width, n_classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.blocks(images).mean(dim=(2, 3)))
