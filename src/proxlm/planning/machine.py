"""What a processor does in a second: published figures of GPUs, and the shares of them that are reached."""

from __future__ import annotations

from dataclasses import dataclass, replace

from proxlm.planning.cost import Cost


@dataclass(frozen=True)
class Machine:
    """Rates of one device.

    Attributes:
        flops: Operations of float32 products in a second.
        low_flops: Of bf16 products.
        bandwidth: Bytes of its memory read or written in a second.
        call: Seconds that one operator takes beside its work.
        link: Bytes that it sends to its neighbours in a second.
        exchange: Seconds that one collective operation takes beside its bytes.
        disk: Bytes of a shared folder written or read in a second.
    """

    flops: float
    low_flops: float
    bandwidth: float
    call: float = 8e-6
    link: float = 50e9
    disk: float = 1e9
    exchange: float = 30e-6

    def seconds(self, cost: Cost, bfloat16: bool = False) -> float:
        """Seconds of a cost whose kinds of work follow one another."""
        rate = self.low_flops if bfloat16 else self.flops
        inside = cost.flops / rate + cost.moved / self.bandwidth + cost.calls * self.call
        return inside + cost.sent / self.link + cost.exchanges * self.exchange

    def reaching(self, of_flops: float, of_bandwidth: float) -> Machine:
        """The machine at these shares of its published rates."""
        return replace(
            self,
            flops=self.flops * of_flops,
            low_flops=self.low_flops * of_flops,
            bandwidth=self.bandwidth * of_bandwidth,
        )


# The makers' data sheets, without sparsity: float32 (no TF32), bf16, memory, links to neighbours in one direction.
GPUS = {
    "h200": Machine(67e12, 989e12, 4.8e12, link=450e9),
    "h100": Machine(67e12, 989e12, 3.35e12, link=450e9),
    "a100": Machine(19.5e12, 312e12, 2.0e12, link=300e9),
    "a800": Machine(19.5e12, 312e12, 2.0e12, link=200e9),
    "l40s": Machine(91.6e12, 362e12, 0.864e12, link=32e9),
    "a10g": Machine(31.2e12, 70e12, 0.6e12, link=32e9),
    "rtx4090": Machine(82.6e12, 165e12, 1.008e12, link=16e9),
}
# Of the published rates of a GPU, what long products and long reads are taken to reach.
OF_FLOPS, OF_BANDWIDTH = 0.4, 0.7
