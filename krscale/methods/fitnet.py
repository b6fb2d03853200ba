"""FitNet: the student's middle stage learns to predict the teacher's.

Source: Romero, Ballas, Kahou, Chassang, Gatta, Bengio, FitNets: Hints for Thin Deep Nets, ICLR
2015, arXiv 1412.6550.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from krscale.config.methods import FitNetSettings
from krscale.errors import UserError
from krscale.knowledge.features import Shapes, feature_shapes, read_features
from krscale.methods.base import MethodContext
from krscale.methods.feature_method import FeatureMethod, shapes_of


def hint_loss(regressed: Tensor, hint: Tensor) -> Tensor:
    """Return `1/2 * ||hint - regressed||^2 / n` for each sample, `[B]` fp32; 0 where they agree.

    This is equation 3 of the paper divided by the number `n` of elements, so that one weight suits
    maps of any size.

    Args:
        regressed: `[B, C, H, W]`, the student's map after the regressor.
        hint: `[B, C, H, W]`, the teacher's; gets no gradient.

    Example:
        >>> [hint_loss(torch.zeros(1, 3, n, n), torch.ones(1, 3, n, n)).item() for n in (2, 8)]
        [0.5, 0.5]
    """
    return 0.5 * (regressed.float() - hint.detach().float()).square().flatten(1).mean(dim=1)


class FitNet(FeatureMethod):
    """Labels, KD, and `hint_loss` of the middle stages, through a 1x1 convolution.

    The paper first trains the lower half on the hint and then the whole network by KD. Here, as in
    later comparisons, all terms are trained together. The paper's regressor is a convolution as
    large as the difference of the two maps. Here maps of unequal size are refused, so it is 1x1.
    """

    settings_class = FitNetSettings
    term = "fitnet"
    kind = "map"
    takes_mixed_labels = True

    def __init__(self, context: MethodContext, settings: FitNetSettings) -> None:
        super().__init__(context, settings)
        teacher = shapes_of(context.teacher_shapes, "map")
        self.check_shapes(context.student_stage_shapes, teacher)
        (guided,) = feature_shapes("map", context.student_stage_shapes)
        self.heads = nn.ModuleList([nn.Conv2d(guided[0], teacher[0][0], 1)])

    @classmethod
    def check_shapes(cls, student: Shapes, teacher: Shapes) -> None:
        """Refuse maps of unequal size; channels may differ."""
        (guided,) = feature_shapes("map", student)
        if guided[1:] != teacher[0][1:]:
            own, theirs = ("x".join(map(str, shape[1:])) for shape in (guided, teacher[0]))
            raise UserError(
                f"method 'fitnet': the middle stage of the student has maps of {own}, that of the "
                f"teacher of {theirs}. They must be equal: choose networks of the same stages, or "
                "leave this method out."
            )

    def compare(
        self, student: Sequence[Tensor], teacher: Sequence[Tensor], labels: Tensor
    ) -> Tensor:
        """Return `hint_loss`."""
        (guided,) = read_features("map", student)
        return hint_loss(self.heads[0](guided), teacher[0])
