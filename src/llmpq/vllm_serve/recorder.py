"""What a stage of vLLM did when: a worker extension (vLLM's ``worker_extension_cls``), which its own processes import.

Between ``begin_record`` and ``end_record`` every model call of the stage is noted. The rest is for profiles: what a single call is made of.
Needs vLLM and nothing of llmpq.
"""

import resource
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

_GROWN_FROM = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB, before the model is there
_GATHER = "sync_and_gather_intermediate_tensors"  # the runner's method that waits for the stage before


class Recorder:
    """Mixed into vLLM's worker, whose ``model_runner`` runs the stage's layers."""

    model_runner: Any

    def begin_record(self) -> None:
        """Note every call from now on."""
        if not hasattr(self, "recorded_calls"):
            self._notice_calls()
        self.recorded_calls: list[dict[str, Any]] = []
        self.recorded_from = time.process_time()

    def end_record(self) -> dict[str, Any]:
        """``calls``, ``process_cpu_s``, and ``rss_growth`` in bytes, the peak since before the model.

        Of a call: ``prefill`` (some request had prompt tokens in it), ``rows`` requests, ``tokens``, ``context`` (the most tokens that a
        request attends to); seconds: ``start_s``, ``end_s``, ``wait_s`` of it for the stage before, ``head_s`` of it in head and sampling,
        ``cpu_s`` and ``head_cpu_s`` of all threads.
        """
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - _GROWN_FROM
        return {"calls": self.recorded_calls, "process_cpu_s": time.process_time() - self.recorded_from, "rss_growth": grown * 1024}

    def begin_peak(self) -> None:
        """From here on ``end_peak`` counts."""
        Path("/proc/self/clear_refs").write_text("5")
        self.resident_before = _status_bytes("VmRSS")

    def end_peak(self) -> int:
        """Bytes by which the process was larger at its peak than at ``begin_peak``."""
        return max(0, _status_bytes("VmHWM") - self.resident_before)

    def time_embedding(self, sizes: Sequence[int], repeats: int) -> list[list[float]]:
        """Seconds of looking up so many random tokens, ``repeats`` times each."""
        import torch

        model, vocab = self.model_runner.model, self.model_runner.model_config.get_vocab_size()
        found: list[list[float]] = [[] for _ in sizes]
        with torch.inference_mode():
            for _ in range(repeats):
                for size, samples in zip(sizes, found, strict=True):
                    ids = torch.randint(vocab, (size,))
                    before = time.perf_counter()
                    model.embed_input_ids(ids)
                    samples.append(time.perf_counter() - before)
        return found

    def _notice_calls(self) -> None:
        runner = self.model_runner
        execute, sample = runner.execute_model, runner.sample_tokens
        gather: Any = getattr(runner, _GATHER, None)  # vLLM's newer runner for GPUs has none: what it waits counts as computing there

        def executed(scheduled: Any, *given: Any, **named: Any) -> Any:
            counts = scheduled.num_scheduled_tokens
            prefill = bool(scheduled.scheduled_new_reqs) or any(count > 1 for count in counts.values())
            call = {"prefill": prefill, "rows": len(counts), "tokens": sum(counts.values()), "context": _context(scheduled)}
            call |= {"wait_s": 0.0, "head_s": 0.0, "head_cpu_s": 0.0, "start_s": time.monotonic(), "cpu_s": -time.process_time()}
            if counts:
                self.recorded_calls.append(call)
            found = execute(scheduled, *given, **named)
            call["end_s"] = time.monotonic()
            call["cpu_s"] += time.process_time()
            return found

        def gathered(*given: Any, **named: Any) -> Any:
            before = time.monotonic()
            found = gather(*given, **named)
            if self.recorded_calls:
                self.recorded_calls[-1]["wait_s"] += time.monotonic() - before
            return found

        def sampled(*given: Any, **named: Any) -> Any:
            before, cpu = time.monotonic(), time.process_time()
            found = sample(*given, **named)
            if self.recorded_calls:
                call = self.recorded_calls[-1]
                call["wait_s"] += before - call["end_s"]  # until the scheduler asked for the tokens
                call["end_s"] = time.monotonic()
                call["cpu_s"] += time.process_time() - cpu
                call["head_s"] += call["end_s"] - before
                call["head_cpu_s"] += time.process_time() - cpu
            return found

        runner.execute_model = executed
        if gather is not None:
            setattr(runner, _GATHER, gathered)
        if _is_last():
            runner.sample_tokens = sampled
            runner.model.compute_logits = self._timed_head(runner.model.compute_logits)

    def _timed_head(self, compute: Callable[..., Any]) -> Callable[..., Any]:
        def computed(*given: Any, **named: Any) -> Any:
            before, cpu = time.monotonic(), time.process_time()
            found = compute(*given, **named)
            if self.recorded_calls:
                self.recorded_calls[-1]["head_s"] += time.monotonic() - before
                self.recorded_calls[-1]["head_cpu_s"] += time.process_time() - cpu
            return found

        return computed


def _context(scheduled: Any) -> int:
    """The most tokens that a request of the call attends to, its own included."""
    known = scheduled.scheduled_cached_reqs
    computed = dict(zip(known.req_ids, known.num_computed_tokens, strict=True))
    computed |= {request.req_id: request.num_computed_tokens for request in scheduled.scheduled_new_reqs}
    return max((computed[name] + count for name, count in scheduled.num_scheduled_tokens.items()), default=0)


def _status_bytes(key: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:"))


def _is_last() -> bool:
    from vllm.distributed import get_pp_group

    return bool(get_pp_group().is_last_rank)
