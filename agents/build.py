"""Map each algorithm's settings to its class; imports torch."""

from __future__ import annotations

from dpd.agents.config import (
    DDPGConfig,
    LearnerConfig,
    PPOConfig,
    SACConfig,
    StudentConfig,
    TD3Config,
)
from dpd.agents.learners import Learners
from dpd.agents.ppo import PPO
from dpd.agents.sac import SAC
from dpd.agents.student import Student
from dpd.agents.td3 import TD3

LEARNER_CLASSES: dict[type[LearnerConfig], type[Learners]] = {
    PPOConfig: PPO,
    TD3Config: TD3,
    DDPGConfig: TD3,
    SACConfig: SAC,
    StudentConfig: Student,
}
