"""The laws give back what their papers print, and their answers agree with each other."""

from __future__ import annotations

import pytest

from llmkit.estimate.scaling_laws import LAWS, USUAL, Kaplan, Parametric, Powers

PARAMETRIC = [law for law in LAWS if isinstance(law, Parametric)]
POWERS = [law for law in LAWS if isinstance(law, Powers)]
BY_NAME = {law.name: law for law in LAWS}


@pytest.mark.parametrize(
    ("law", "flops", "parameters", "tokens"),
    [
        # Hoffmann et al. 2022, table 3 (approach 1) and table A3 (approach 2).
        ("Chinchilla 1", 1.92e19, 400e6, 8.0e9),
        ("Chinchilla 1", 5.76e23, 67e9, 1.5e12),
        ("Chinchilla 1", 1.27e26, 1e12, 21.2e12),
        ("Chinchilla 2", 1.84e19, 400e6, 7.7e9),
        ("Chinchilla 2", 6.88e23, 67e9, 1.7e12),
        ("Chinchilla 2", 1.59e26, 1e12, 26.5e12),
        # Besiroglu et al. 2024, section 4: about 20 tokens a parameter at Chinchilla's compute.
        ("Chinchilla 3, refitted", 5.76e23, 70e9, 1.4e12),
    ],
)
def test_optima_are_those_of_the_papers(law, flops, parameters, tokens):
    found = BY_NAME[law].optimum(flops)
    assert found.parameters == pytest.approx(parameters, rel=0.06)
    assert found.tokens == pytest.approx(tokens, rel=0.08)


def test_the_original_third_approach_asks_for_smaller_models_than_the_others():
    """The inconsistency that the replication is about."""
    assert BY_NAME["Chinchilla 3"].optimum(5.76e23).parameters == pytest.approx(32e9, rel=0.02)


def test_losses_are_those_of_the_papers():
    # Kaplan et al. 2020, figure 14 and 1: 1.3B parameters and (3.1e8)^0.05 nats for a petaflop-day.
    best = Kaplan().optimum(1e15 * 86400)
    assert (best.parameters, best.loss) == (pytest.approx(1.3e9), pytest.approx(2.66, abs=0.005))
    # Hoffmann et al. 2022: Chinchilla, 70B parameters on 1.4T tokens.
    assert BY_NAME["Chinchilla 3"].loss(70e9, 1.4e12) == pytest.approx(1.937, abs=0.001)


@pytest.mark.parametrize("law", [*PARAMETRIC, Kaplan()], ids=lambda law: law.name)
def test_answers_agree_with_each_other(law):
    best = law.optimum(1e23)
    assert best.flops == pytest.approx(1e23)
    assert law.flops_for(best.loss) == pytest.approx(1e23, rel=1e-6)
    assert law.tokens_for(1e6, 1.85) is None, "too small for that loss, or not known"
    if law in PARAMETRIC:
        assert law.tokens_for(8e9, law.loss(8e9, 300e9)) == pytest.approx(300e9, rel=1e-6)


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.name)
@pytest.mark.parametrize(("parameters", "tokens"), [(124e6, 2.5e9), (8e9, 160e9), (70e9, 15e12)])
def test_no_run_is_better_than_the_best_for_its_flops(law, parameters, tokens):
    loss, best = law.loss(parameters, tokens), law.optimum(6 * parameters * tokens).loss
    assert loss is None or loss >= best


@pytest.mark.parametrize("law", PARAMETRIC, ids=lambda law: law.name)
def test_no_other_size_is_better(law):
    best = law.optimum(1e22)
    for factor in (0.8, 0.99, 1.01, 1.25):
        assert law.loss(best.parameters * factor, best.tokens / factor) > best.loss
    assert law.flops_for(law.floor) is None


@pytest.mark.parametrize("law", POWERS, ids=lambda law: law.name)
def test_a_law_of_sizes_says_nothing_of_losses(law):
    assert law.loss(1e9, 1e9) is law.tokens_for(1e9, 2.0) is law.flops_for(2.0) is None
    assert law.optimum(1e24).flops == pytest.approx(1e24, rel=0.02)


def test_every_law_names_its_source_and_constants():
    assert len(BY_NAME) == len(LAWS) and USUAL in LAWS
    assert all("arXiv" in law.source and law.formula for law in LAWS)
