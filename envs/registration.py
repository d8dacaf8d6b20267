"""Make Gymnasium know the native environments. Imports neither torch nor MuJoCo.

An installed dpd is found by Gymnasium as a plugin, while `import gymnasium` is still under way.
"""

from gymnasium.envs.registration import register, registry

NAMESPACE = "dpd"
ENV_IDS = ("HalfCheetah-v5", "Hopper-v5", "Walker2d-v5", "Swimmer-v5", "Ant-v5", "Humanoid-v5")


def register_envs() -> None:
    """Register `dpd/HalfCheetah-v5` and the other five for `gymnasium.make_vec`; safe to repeat."""
    for env_id in ENV_IDS:
        name = f"{NAMESPACE}/{env_id}"
        if name not in registry:
            register(
                id=name,
                vector_entry_point="dpd.envs.vector:NativeVectorEnv",
                kwargs={"env_id": env_id},
            )
