"""Every message that the checker can give is given by some broken plan of these tests; a new one without a plan fails here."""

import ast
import copy
import inspect
import sys
from collections.abc import Callable
from typing import Any

import test_check
import test_check_choices
from plan_instances import rich_problem

from llmpq.plan import check as module
from llmpq.plan.planner import plan


def message_lines() -> set[int]:
    """First lines of the statements in check.py that yield a message."""
    tree = ast.parse(inspect.getsource(module))
    return {node.lineno for node in ast.walk(tree) if isinstance(node, ast.Expr) and isinstance(node.value, ast.Yield)}


def lines_run(call: Callable[[], Any]) -> set[int]:
    found: set[int] = set()

    def trace(frame: Any, event: str, _: Any) -> Any:
        if frame.f_code.co_filename != module.__file__:
            return None
        if event == "line":
            found.add(frame.f_lineno)
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    finally:
        sys.settrace(before)
    return found


def test_every_message_has_a_broken_plan() -> None:
    given: set[int] = set()
    good, rich = plan(test_check.PROBLEM, "llmpq", gap=0.0), plan(rich_problem(), "llmpq", gap=0.0)
    for case in test_check.BROKEN:
        broken = copy.deepcopy(good)
        case.values[0](broken)
        given |= lines_run(lambda broken=broken: module.check(test_check.PROBLEM, broken))
    for case in test_check_choices.MISPLACED:
        broken = test_check_choices.changed(rich, case[0], **case[1])
        given |= lines_run(lambda broken=broken: module.check(rich_problem(), broken))
    together = test_check_choices.changed(test_check_choices.changed(rich, 0, device="slow"), 1, device="old")
    given |= lines_run(lambda: module.check(rich_problem(), together))
    listed = {**test_check.PROBLEM, "micro_batches": {"decode": [2]}}
    given |= lines_run(lambda: module.check(listed, good))
    given |= lines_run(test_check_choices.test_a_size_that_no_micro_batch_has)
    given |= lines_run(lambda: module.check(test_check.PROBLEM, {**good, "schedule": "continuous"}))
    source = inspect.getsource(module).splitlines()
    assert [source[line - 1].strip() for line in sorted(message_lines() - given)] == []
