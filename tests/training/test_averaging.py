import torch
from torch import nn

from krscale.training.averaging import AveragedStudent


def test_the_average_follows_by_its_formula():
    student = nn.BatchNorm1d(1)
    average = AveragedStudent(student, 0.3)
    expected = 1.0
    for number in range(6):
        with torch.no_grad():
            student.weight.fill_(2.0 + number)
            student.num_batches_tracked.fill_(number)
        average.update(student)
        decay = min(0.3, (1 + number) / (10 + number))
        expected = decay * expected + (1 - decay) * (2.0 + number)
        assert average.model.num_batches_tracked == number
    assert torch.allclose(average.model.weight, torch.tensor([expected]))
    assert student.weight.item() == 7.0


def test_it_goes_on_from_its_state():
    student, other = nn.Linear(1, 1), nn.Linear(1, 1)
    average = AveragedStudent(student, 0.9)
    average.update(other)
    again = AveragedStudent(nn.Linear(1, 1), 0.9)
    again.load_state_dict(average.state_dict())
    for found in (average, again):
        found.update(other)
    assert torch.equal(average.model.weight, again.model.weight)
