"""Training of the zoo's networks: `har_export.train`'s loop and augmentation, for any network that gives logits."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from agent.core.normalise import Normalisation
from har_export.datasets.records import Data
from har_export.lab.zoo.modules import WINDOW, Classifier
from har_export.train import Progress, Sampler, Settings, augment, classification, descend, to_input

DISTILLED = 0.7
"""Weight of the teachers' opinion in distillation; the rest is the labels'."""

TEMPERATURE = 3.0
"""Softens teacher and student alike (Hinton et al., 2015)."""


def fit(
    network: Classifier,
    data: Data,
    normalisation: Normalisation,
    seed: int,
    settings: Settings,
    *,
    constrain: Callable[[], None] = lambda: None,
    teachers: Sequence[Classifier] = (),
    report: Callable[[Progress], None] | None = None,
) -> None:
    """Train `network` in place, or go on with it, on all of `data`; leave it in evaluation mode.

    `constrain` puts the weights back where they may be, such as zero where they were pruned; it is called before each
    step and after the last. `teachers`: networks whose mean opinion the network learns beside the labels.
    """
    generator = torch.Generator().manual_seed(seed)

    def loss(values: Tensor, label: Tensor, _: Tensor) -> Tensor:
        constrain()
        network.train()
        windows = to_input(augment(values, settings, generator), normalisation)
        logits, rebuilt = network.reconstruct(windows)
        total = classification(logits, label, settings)
        if teachers:
            total = (1 - DISTILLED) * total + DISTILLED * distillation(logits, opinion(teachers, windows))
        if rebuilt is not None:
            total = total + settings.reconstruction * functional.mse_loss(rebuilt, windows)
        return total

    descend(list(network.parameters()), loss, Sampler(data, WINDOW, seed), settings, report)
    constrain()
    network.eval()


@torch.no_grad()
def opinion(teachers: Sequence[Classifier], windows: Tensor) -> Tensor:
    """Return the mean of the teachers' softened probabilities (B, classes)."""
    return torch.stack([functional.softmax(t(windows) / TEMPERATURE, dim=1) for t in teachers]).mean(dim=0)


def distillation(logits: Tensor, taught: Tensor) -> Tensor:
    """Cross-entropy between the teachers' softened probabilities and the student's, with the scale of a plain one."""
    return TEMPERATURE**2 * functional.cross_entropy(logits / TEMPERATURE, taught)
