import pytest
import torch
from torch import nn

from krscale.training.averaging import AveragedStudent


def test_the_average_follows_by_its_formula():
    student = nn.BatchNorm1d(1)
    average = AveragedStudent(student, 0.3)
    expected, expected_mean = 1.0, 0.0
    for number in range(6):
        with torch.no_grad():
            student.weight.fill_(2.0 + number)
            student.running_mean.fill_(3.0 + number)
            student.num_batches_tracked.fill_(number)
        average.update(student)
        decay = min(0.3, (1 + number) / (10 + number))
        expected = decay * expected + (1 - decay) * (2.0 + number)
        expected_mean = decay * expected_mean + (1 - decay) * (3.0 + number)
        assert average.model.num_batches_tracked == number
    assert torch.allclose(average.model.weight, torch.tensor([expected]))
    assert torch.allclose(average.model.running_mean, torch.tensor([expected_mean]))
    assert student.weight.item() == 7.0


def tied_by_module():
    layer = nn.Linear(2, 2)
    return nn.Sequential(layer, nn.ReLU(), layer)


def tied_by_weight():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[1].weight = model[0].weight
    return model


def tied_by_storage():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[1].weight.data = model[0].weight.data
    return model


@pytest.mark.parametrize("build", [tied_by_module, tied_by_weight, tied_by_storage])
def test_tied_weights_follow_once(build):
    student = build()
    average = AveragedStudent(student, 0.5)
    before = student[0].weight.detach().clone()
    with torch.no_grad():
        student[0].weight.add_(1.0)
    average.update(student)
    assert torch.allclose(average.model[0].weight, before + 0.9)


def test_it_goes_on_from_its_state():
    student, other = nn.Linear(1, 1), nn.Linear(1, 1)
    average = AveragedStudent(student, 0.9)
    average.update(other)
    again = AveragedStudent(nn.Linear(1, 1), 0.9)
    again.load_state_dict(average.state_dict())
    for found in (average, again):
        found.update(other)
    assert torch.equal(average.model.weight, again.model.weight)


def test_a_mask_with_infinity_stays_as_it_is():
    """Its mean with itself would be NaN, and so would be all that is computed of it."""
    student = nn.Linear(1, 1)
    student.register_buffer("mask", torch.tensor([0.0, -torch.inf]))
    average = AveragedStudent(student, 0.9)
    average.update(student)
    assert torch.equal(average.model.mask, student.mask)


def test_the_average_of_weights_of_few_digits_moves():
    """A hundredth of a difference is less than the next number in bf16."""
    student = nn.Linear(3, 2).to(torch.bfloat16)
    average = AveragedStudent(student, decay=0.999)
    exact = [parameter.double() for parameter in average.model.parameters()]
    for step in range(400):
        with torch.no_grad():
            for parameter in student.parameters():
                parameter.fill_(1.0 if step < 100 else 2.0)
        if step == 200:
            state = average.state_dict()
            average = AveragedStudent(student, decay=0.999)
            average.load_state_dict(state)
        average.update(student)
        decay = min(0.999, (1 + step) / (10 + step))
        exact = [decay * value + (1 - decay) * (1 + (step >= 100)) for value in exact]
    for parameter, expected in zip(average.model.parameters(), exact, strict=True):
        assert parameter.dtype == torch.bfloat16
        torch.testing.assert_close(parameter.double(), expected, rtol=0.005, atol=0.005)


def test_complex_weights_follow_too():
    """They were copied, so that what was judged was half an average."""
    student = nn.ParameterList([torch.tensor([2.0 + 4.0j])])
    average = AveragedStudent(student, 0.5)
    with torch.no_grad():
        student[0].add_(1.0 - 1.0j)
    average.update(student)
    assert torch.allclose(average.model[0], torch.tensor([2.9 + 3.1j]))
