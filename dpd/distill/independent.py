"""Peers that learn alone: the baseline that measures what dual distillation would act on."""

from __future__ import annotations

from dpd.agents.base import Batch, Metrics
from dpd.agents.learners import Learners
from dpd.distill.exchange import PeerExchange, action_distance, pick
from dpd.distill.method import Context, Method
from dpd.distill.peers_config import IndependentConfig
from dpd.distill.rulers import gap, gap_metrics

MEASURED_STATES = 256  # states per learner and iteration


class Independent(Method):
    """Peers that ignore each other; logs how far apart they are and who is ahead."""

    STATE = ("exchange",)

    def __init__(self, config: IndependentConfig, context: Context) -> None:
        super().__init__(context)
        self.exchange = PeerExchange(context, "peer", 1.0, None)

    def on_batch(self, batch: Batch, progress: float) -> None:
        self.exchange.remember(self.agent, batch)

    def on_peer_batch(self, agent: Learners, batch: Batch) -> None:
        self.exchange.remember(agent, batch)

    def step(self) -> Metrics:
        x = self.exchange
        if x.peers == 1 or not x.ready:
            return {}
        states = x.draw(MEASURED_STATES)
        policies, values = x.ask(states.obs)
        metrics = {"distill/action_distance": action_distance(policies, x.student, states.source)}
        if len(x.peer_stacks) > 1:  # values of unlike learners estimate different quantities
            return metrics
        student = x.student.expand_as(states.source)
        return metrics | gap_metrics(gap(pick(values, student), pick(values, states.source)))
