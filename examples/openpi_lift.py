"""openpi's own client drives robosuite's Lift: python -m vla_runtime.serve policy=nano_lift_beast, then this."""

from openpi_client.action_chunk_broker import ActionChunkBroker
from openpi_client.websocket_client_policy import WebsocketClientPolicy

from envs.robosuite import Robosuite
from vla_runtime import Command

env = Robosuite(task_class="Lift", instruction="lift the red cube", control="absolute")
policy = ActionChunkBroker(WebsocketClientPolicy("127.0.0.1", 8000), action_horizon=8)
env.reset(seed=0, task=0, episode=0)
for _ in range(env.spec.max_steps):
    seen = env.observe(["agentview", "robot0_eye_in_hand"])
    image, wrist = seen.images["agentview"], seen.images["robot0_eye_in_hand"]
    words = {"observation/state": seen.state, "prompt": seen.instruction}
    answer = policy.infer({"observation/image": image, "observation/wrist_image": wrist, **words})
    env.apply(Command(answer["actions"], seen.time))
    if env.outcome() is not None:
        break
print(env.outcome())
