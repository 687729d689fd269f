"""All figures of the page, in the order in which they are read."""

from llmpq.report.experiment import Document, Experiment
from llmpq.report.figures.base import Figure
from llmpq.report.figures.costs import layer_costs
from llmpq.report.figures.front import pareto_front
from llmpq.report.figures.memory import device_bytes
from llmpq.report.figures.plans import plan_strips
from llmpq.report.figures.prediction import predicted_measured
from llmpq.report.figures.quality import speed_quality
from llmpq.report.figures.sensitivity import sensitivity_map
from llmpq.report.figures.speed import phases, throughput
from llmpq.report.figures.timeline import run_timeline, trace_rows

__all__ = ["Figure", "all_figures"]


def all_figures(experiment: Experiment, summary: Document) -> dict[str, list[Figure]]:
    """Section of the page → its figures. What was not served has no measured figures; without an indicator there is no sensitivity."""
    front = pareto_front(experiment, summary)
    focus = next(run for run in experiment.runs if run.strategy == summary["verdict"]["focus"])
    return {
        "comparison": [
            throughput(summary),
            phases(summary),
            *(speed_quality(summary) if summary["served"] and len(experiment.runs) > 1 else []),
        ],
        "plans": [plan_strips(experiment, summary), device_bytes(experiment, summary)],
        "reasons": [
            *([sensitivity_map(experiment.indicator, summary, experiment.problem["options"])] if experiment.indicator else []),
            *layer_costs(experiment, summary),
        ],
        "prediction": predicted_measured(experiment, summary) if summary["served"] else [],
        "front": [front] if front is not None else [],
        "timeline": [run_timeline(focus, summary["source"])] if trace_rows(focus) else [],
    }
