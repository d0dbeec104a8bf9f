"""Sorts an incoming order: two checks run side by side, a router decides, one of three ends is taken."""

import json
import sys
from typing import Any, Literal

from crewai.flow import Flow, and_, listen, or_, router, start
from pydantic import BaseModel, Field

SHELF = {"lamp": 12, "desk": 3, "chair": 0}
LARGE_ORDER = 1_000.0


class OrderState(BaseModel):
    """What is known about the order; the first four fields are its inputs."""

    order_id: str = "A-1001"
    item: str = "lamp"
    quantity: int = Field(default=1, ge=1, le=1_000)
    unit_price: float = Field(default=49.0, ge=0)
    in_stock: bool = False
    risk: Literal["low", "high"] = "low"
    decision: str = ""


class OrderTriageFlow(Flow[OrderState]):
    """Decides what happens to an order: ship it, hold it for a person, or reject it."""

    @start()
    def receive(self, crewai_trigger_payload: dict[str, Any] | None = None) -> str:
        if crewai_trigger_payload:
            self.state.item = crewai_trigger_payload.get("item", self.state.item)
            self.state.quantity = crewai_trigger_payload.get("quantity", self.state.quantity)
        print(f"order {self.state.order_id}: {self.state.quantity} x {self.state.item}")
        return self.state.order_id

    @listen(receive)
    def check_stock(self) -> bool:
        self.state.in_stock = SHELF.get(self.state.item, 0) >= self.state.quantity
        return self.state.in_stock

    @listen(receive)
    def check_risk(self) -> str:
        self.state.risk = "high" if self.state.quantity * self.state.unit_price > LARGE_ORDER else "low"
        return self.state.risk

    @router(and_(check_stock, check_risk))
    def decide(self) -> Literal["ship", "hold", "reject"]:
        if not self.state.in_stock:
            return "reject"
        return "hold" if self.state.risk == "high" else "ship"

    @listen("ship")
    def pack(self) -> str:
        self.state.decision = "shipped"
        return "packed and on its way"

    @listen("hold")
    def ask_a_person(self) -> str:
        self.state.decision = "held"
        return f"more than {LARGE_ORDER:g}: somebody should call the customer"

    @listen("reject")
    def turn_down(self) -> str:
        self.state.decision = "rejected"
        return f"{self.state.item} is not on the shelf"

    @listen(or_(pack, ask_a_person, turn_down))
    def report(self, reason: str) -> dict[str, str]:
        print(f"order {self.state.order_id} is {self.state.decision}: {reason}")
        return {"order_id": self.state.order_id, "decision": self.state.decision, "reason": reason}


def kickoff() -> None:
    OrderTriageFlow().kickoff()


def plot() -> None:
    OrderTriageFlow().plot("order_triage")


def run_with_trigger() -> None:
    """Takes the trigger's payload as one JSON argument, as `crewai` passes it."""
    OrderTriageFlow().kickoff(inputs={"crewai_trigger_payload": json.loads(sys.argv[1])})


if __name__ == "__main__":
    kickoff()
