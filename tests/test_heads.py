"""What heads read: probabilities that are some, and an ordinal scale that is one."""

import pytest
import torch

from warmline.data.labels import AFFECTS, RISKS, HeadSpec
from warmline.model.heads import values

WILD = torch.tensor([[3.0, -2.0, 5.0], [-1.0, 4.0, -6.0], [60.0, 60.0, 60.0], [-60.0, 90.0, -90.0], [0.0, 0.0, 0.0]])


@pytest.mark.parametrize("kind", ["softmax", "ordinal"])
def test_probabilities_sum_to_one(kind: str) -> None:
    spec = HeadSpec("ordinal", RISKS) if kind == "ordinal" else HeadSpec("softmax", RISKS[:3])
    probabilities = values(spec, WILD)
    assert probabilities.shape == (5, len(spec.labels))
    assert (probabilities >= 0).all()
    torch.testing.assert_close(probabilities.sum(dim=1), torch.ones(5))


def test_ordinal_values_are_differences_of_falling_thresholds() -> None:
    spec = HeadSpec("ordinal", RISKS)
    above = torch.tensor([[0.9, 0.6, 0.2]])
    torch.testing.assert_close(values(spec, above.logit()), torch.tensor([[0.1, 0.3, 0.4, 0.2]]))
    # P(level > 2) cannot be more than P(level > 1): what contradicts it is held down
    contrary = torch.tensor([[0.9, 0.2, 0.6]])
    torch.testing.assert_close(values(spec, contrary.logit()), torch.tensor([[0.1, 0.7, 0.0, 0.2]]))


def test_a_higher_ordinal_output_never_lowers_the_risk() -> None:
    spec = HeadSpec("ordinal", RISKS)
    torch.manual_seed(0)
    outputs = torch.randn(200, 3) * 3
    at_least = values(spec, outputs).flip(1).cumsum(1)  # P(level >= k), k falling
    raised = values(spec, outputs + torch.rand(200, 3)).flip(1).cumsum(1)
    assert (raised >= at_least - 1e-6).all()
    assert (raised[:, :3] > at_least[:, :3]).any(dim=0).all()


def test_sigmoid_and_regression_values_stand_alone() -> None:
    sigmoid = HeadSpec("sigmoid", RISKS[:3])
    torch.testing.assert_close(values(sigmoid, WILD), torch.sigmoid(WILD))
    affect = HeadSpec("regression", AFFECTS)
    found = values(affect, torch.tensor([[0.25, -3.0], [1.5, -0.5]]))
    assert found.tolist() == [[0.25, -1.0], [1.0, -0.5]]
