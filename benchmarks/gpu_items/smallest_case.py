"""Run the smallest case of one kernel on one device: ``python -m gpu_items.smallest_case NAME DEVICE``."""

from __future__ import annotations

import sys

from fewstep import plugins


def main(name: str, device: str) -> None:
    """Call the kernel's fast version for this device once."""
    kernel = plugins.kernels()[name].load()
    case = min(kernel.cases(), key=lambda case: sum(tensor.numel() for tensor in case.args) or 1 << 40)
    case.to(device).call(kernel.function(kernel.chosen_backend(device)))
    if device == "cuda":
        import torch

        torch.cuda.synchronize()


if __name__ == "__main__":
    main(*sys.argv[1:])
