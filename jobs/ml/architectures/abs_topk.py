"""AbsTopK: Zhu et al. 2025, AbsTopK: rethinking sparse autoencoders for bidirectional features, arXiv:2510.00404."""

from torch import Tensor

from jobs.ml.architectures.topk import TopK
from jobs.ml.support import Support


class AbsTopK(TopK):
    """The k of each row with the largest |a_i| ||W_dec_i|| survive, with their sign."""

    architecture = "abstopk"
    signed = True

    def activate(self, a: Tensor, support: Support) -> Tensor:
        return a
