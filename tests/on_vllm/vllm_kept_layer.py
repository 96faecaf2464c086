"""A vLLM worker, with proxlm's checksums, in which a layer can stay as it was when weights are loaded."""

from __future__ import annotations

from proxlm_checksums import Checksums


class KeptLayer(Checksums):
    """Runs in vLLM's environment."""

    def keep_layer(self, name: str) -> None:
        self.kept = name, self.model_runner.get_model().get_submodule(name).cpu_linear

    def put_back(self) -> None:
        """What the layer computed with before."""
        name, before = self.kept
        self.model_runner.get_model().get_submodule(name).cpu_linear = before
