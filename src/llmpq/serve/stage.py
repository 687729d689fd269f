"""One stage at work: its model share and KV cache on its (emulated) device, every call timed."""

import time
from dataclasses import dataclass

import torch

from llmpq.emulation import Emulator
from llmpq.model.cache import StageCache
from llmpq.model.stage import StageModel
from llmpq.serve.sampling import SlotSampling
from llmpq.serve.timeline import Timeline
from llmpq.serve.transport import SCATTERED, Header, Kind
from llmpq.trace import Call


@dataclass(frozen=True, slots=True)
class Output:
    """What a call hands on: hidden states and the prompt lengths or positions, or on the last stage token ids and their margins."""

    header: Header
    integers: torch.Tensor
    values: torch.Tensor


class Stage:
    """Runs the micro-batches of one stage; ``timeline`` has the measured calls. The last one ``chooses`` the tokens too."""

    def __init__(self, model: StageModel, cache: StageCache, emulator: Emulator) -> None:
        self._model = model
        self._cache = cache
        self._emulator = emulator
        self.chooses = model.head is not None
        self._sampling = SlotSampling()
        self.timeline = Timeline()

    @property
    def digest_lines(self) -> list[str]:
        """What this stage serves: a line with option and content digest for each layer and end, in order."""
        return self._model.digest_lines

    def assign(self, first_slot: int, seeds: torch.Tensor, values: torch.Tensor) -> None:
        """How the slots from ``first_slot`` on choose their tokens from now on: see SlotSampling.assign."""
        self._sampling.assign(first_slot, seeds, values)

    def run(self, header: Header, integers: torch.Tensor, inputs: torch.Tensor) -> Output:
        """One prefill or decode call.

        ``integers`` [rows] are prompt lengths (prefill; the slots of scattered rows follow them) or the positions that the new tokens take
        (decode); ``inputs`` are ids on the first stage ([rows, tokens] or [rows]) and hidden states on the others ([rows, tokens, hidden]
        or [rows, hidden]).
        """
        if header.measured and not self.timeline.count:
            self.timeline.process_start_s = time.process_time()
        with self._emulator.call() as call:
            if header.kind is Kind.PREFILL:
                values = self._prefill(header, integers, inputs)
            else:
                values = self._model.decode(inputs, self._cache, _slots(header), integers)
            if self.chooses:
                integers, values = self._choose(header, integers, values)
        if header.measured:
            phase = "prefill" if header.kind is Kind.PREFILL else "decode"
            end_s = call.start_s + call.elapsed_s
            self.timeline.add(Call(phase, header.micro_batch, header.step, header.rows, header.tokens, call.start_s, end_s, call.cpu_s))
        if self.chooses:
            header = Header(Kind.TOKENS, header.micro_batch, max(header.first_slot, 0), header.rows, 1, header.step, header.measured)
        return Output(header, integers, values)

    def _prefill(self, header: Header, integers: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
        if header.first_slot == SCATTERED:
            lengths, slots = integers.view(2, header.rows)
            return self._model.prefill(inputs, self._cache, slots, lengths)
        return self._model.prefill(inputs, self._cache, _slots(header), integers)

    def _choose(self, header: Header, integers: torch.Tensor, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if header.kind is Kind.PREFILL and header.first_slot == SCATTERED:
            lengths, slots = integers.view(2, header.rows)
            return self._sampling.choose(logits, slots.tolist(), lengths)
        slots_in_a_row = range(header.first_slot, header.first_slot + header.rows)
        taken = integers if header.kind is Kind.PREFILL else integers + 1  # the positions of the new tokens
        return self._sampling.choose(logits, slots_in_a_row, taken)


def _slots(header: Header) -> slice:
    return slice(header.first_slot, header.first_slot + header.rows)
