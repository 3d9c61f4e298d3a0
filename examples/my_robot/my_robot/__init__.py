"""An environment and a policy of one's own, used by name: `rollout env=slider policy=nudge`."""
