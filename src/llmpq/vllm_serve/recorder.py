"""What a stage of vLLM did when: a worker extension (vLLM's ``worker_extension_cls``), which its own processes import.

Between ``begin_record`` and ``end_record`` every model call of the stage is noted. Needs vLLM and nothing of llmpq.
"""

import resource
import time
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
        """``calls`` (prefill: some request had prompt tokens in it; ``rows`` requests; seconds: ``start_s``, ``end_s``, ``wait_s`` of it
        for the stage before, ``cpu_s`` of all threads), ``process_cpu_s``, and ``rss_growth`` in bytes, the peak since before the model.
        """
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - _GROWN_FROM
        return {"calls": self.recorded_calls, "process_cpu_s": time.process_time() - self.recorded_from, "rss_growth": grown * 1024}

    def _notice_calls(self) -> None:
        runner = self.model_runner
        execute, sample = runner.execute_model, runner.sample_tokens
        gather: Any = getattr(runner, _GATHER, None)  # vLLM's newer runner for GPUs has none: what it waits counts as computing there

        def executed(scheduled: Any, *given: Any, **named: Any) -> Any:
            counts = scheduled.num_scheduled_tokens
            prefill = bool(scheduled.scheduled_new_reqs) or any(count > 1 for count in counts.values())
            call = {"prefill": prefill, "rows": len(counts), "tokens": sum(counts.values()), "wait_s": 0.0}
            call |= {"start_s": time.monotonic(), "cpu_s": -time.process_time()}
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
            return found

        runner.execute_model = executed
        if gather is not None:
            setattr(runner, _GATHER, gathered)
        if _is_last():
            runner.sample_tokens = sampled


def _is_last() -> bool:
    from vllm.distributed import get_pp_group

    return bool(get_pp_group().is_last_rank)
