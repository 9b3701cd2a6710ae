"""The loss that a Trainer with the mixin trains is the loss that the plain Trainer has, or it is refused."""

from __future__ import annotations

import pytest

from tests.integrations.situations import CLOSURE, REFUSED, SITUATIONS, Situation

pytestmark = pytest.mark.full

IN_A_FEW_WORDS = pytest.mark.parametrize("situation", SITUATIONS, ids=lambda situation: situation.name)


@IN_A_FEW_WORDS
def test_the_first_loss_is_that_of_the_plain_trainer_or_the_situation_is_refused(situation: Situation, tmp_path):
    if situation.outcome == REFUSED:
        with pytest.raises(ValueError, match=situation.says) as raised:
            situation.first_loss(tmp_path)
        assert "\n" not in str(raised.value)
        return
    loss, said = situation.first_loss(tmp_path)
    assert loss == pytest.approx(situation.plain_loss(tmp_path), rel=2e-4)
    of_closures = [text for text in said if "evaluated as a closure" in text]
    chosen = situation.arguments.get("label_smoothing_factor") or situation.name == "a compute_loss_func"
    assert len(of_closures) == (situation.outcome == CLOSURE and not chosen)
