"""The sampler: from logits of the sampling rows to token ids, with all per-row state on the device."""

from octavo.worker.sampler.sampled import Sampled
from octavo.worker.sampler.sampler import Sampler

__all__ = ["Sampled", "Sampler"]
