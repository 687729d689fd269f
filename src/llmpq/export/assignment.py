"""What is exported: an option for every layer and for both ends, from a plan or the same for all."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llmpq import planless
from llmpq.export.target import ExportError, Target
from llmpq.model.spec import ModelSpec
from llmpq.quant.bytes import ENDS
from llmpq.quant.options import WeightOption, weight_option


@dataclass(frozen=True)
class Assignment:
    """``options``: one per decoder layer; ``label`` says in messages what they come from."""

    label: str
    options: tuple[str, ...]
    embedding_option: str = "16"
    head_option: str = "16"

    @classmethod
    def of_plan(cls, plan: Mapping[str, Any], label: str) -> "Assignment":
        """The options of a plan.json; ExportError where it has no plan."""
        if (why := planless.reason(plan)) is not None:
            raise ExportError(f"{label}: strategy {plan['strategy']} has no plan to export: {why}")
        stages = sorted(plan["stages"], key=lambda stage: stage["first_layer"])
        ends = {}
        for end in ENDS:
            found = [stage[f"{end}_option"] for stage in stages if stage[f"has_{end}"]]
            if len(found) != 1:
                raise ExportError(f"{label}: {len(found)} stages have the {end}, not one: the plan is not whole; plan again")
            ends[f"{end}_option"] = found[0]
        return cls(label, tuple(option for stage in stages for option in stage["options"]), **ends)

    @classmethod
    def uniform(cls, option: str, layers: int) -> "Assignment":
        """The same option in all layers; ends at 16 bits, with option 32 at 32."""
        end = "32" if option == "32" else "16"
        return cls(f"option {option}", (option,) * layers, end, end)

    def checked(self, spec: ModelSpec, target: Target) -> list[WeightOption]:
        """The layers' options; ExportError where the target cannot express one, or the model is another, with what to choose instead."""
        if len(self.options) != spec.layers:
            raise ExportError(f"{self.label}: has {len(self.options)} layers, the model {spec.layers}; give the checkpoint it was made for")
        refused = {name: reason for name in dict.fromkeys(self.options) if (reason := _refusal(name, target)) is not None}
        if refused:
            first, *others = (f"{self._layers_at(name)} cannot be exported to {target.name}: {why}" for name, why in refused.items())
            raise ExportError(". Nor can ".join([f"{self.label}: {first}", *(other.replace(" cannot be", " be") for other in others)]))
        for end in ENDS:
            option = getattr(self, f"{end}_option")
            if weight_option(option).quantised:
                raise ExportError(
                    f"{self.label}: the {end} at option '{option}' cannot be exported to {target.name}: readers keep it unquantised; "
                    'plan with 16 alone for embedding and head (model.end_options=["16"])'
                )
        if spec.tied_embeddings and self.embedding_option != self.head_option:
            raise ExportError(
                f"{self.label}: embedding and head are one tensor, but kept at {self.embedding_option} and {self.head_option} bits; "
                "choose the same for both"
            )
        return [weight_option(name) for name in self.options]

    def _layers_at(self, name: str) -> str:
        layers = [layer for layer, option in enumerate(self.options) if option == name]
        others = f" and {len(layers) - 1} more" if len(layers) > 1 else ""
        return f"layer {layers[0]}{others} at option '{name}'"


def _refusal(name: str, target: Target) -> str | None:
    weights, separator, cache = name.partition("/")
    if separator:
        return f"a checkpoint cannot say that single layers keep their cache as {cache}; choose {weights}"
    return target.refusal(weight_option(name))
