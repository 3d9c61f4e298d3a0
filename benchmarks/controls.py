"""Whether a trained policy looks: what it still manages without its images, its state or its own instruction.

    python benchmarks/controls.py --env lift --policy checkpoints/lift --out runs/controls
    python benchmarks/controls.py --env libero_object --policy checkpoints/object --episodes 10 --out runs/c

The other instruction of a LIBERO task is that of another task whose object stands in the same scene, so that
following it means taking the wrong thing. Writes benchmarks/controls_<policy>.json and prints a table; what
was finished is not done again.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

from vla_runtime.evaluation.statistics import wilson_interval

HERE = Path(__file__).parent


def rollout(arguments, name, *options):
    """The summary of one rollout."""
    done = subprocess.run(
        [
            *(sys.executable, "-m", "vla_runtime.rollout", f"env={arguments.env}", "env.control=absolute"),
            *(f"episodes={arguments.episodes}", f"workers={arguments.workers}", "video=none"),
            *(f"out={arguments.out / name}", *options),
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    if done.returncode:
        sys.exit(done.stdout)
    return json.loads(done.stdout.splitlines()[-1])


def other_instructions(suite):
    """For every task of a LIBERO suite, (instruction, that of the next task whose object is in its scene)."""
    from envs.libero import Libero

    env = Libero(suite=suite)
    try:
        names = env.spec.tasks
        files = [env.task_file(task) for task in range(len(names))]
    finally:
        env.close()
    from libero.libero.envs.bddl_utils import robosuite_parse_problem

    scenes = [robosuite_parse_problem(str(file)) for file in files]
    found = []
    for task, scene in enumerate(scenes):
        there = {thing for things in scene["objects"].values() for thing in things}
        order = [(task + step) % len(names) for step in range(1, len(names))]
        other = next((i for i in order if scenes[i]["goal_state"][0][1] in there), None)
        if other is None:
            sys.exit(f"{names[task]}: expected another task's object in its scene, got none")
        found.append((names[task], names[other]))
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--env", required=True, help="lift, can, libero_object")
    parser.add_argument("--policy", required=True, help="a checkpoint's folder")
    parser.add_argument("--out", type=Path, required=True, help="where the runs go")
    parser.add_argument("--episodes", type=int, default=100, help="per task")
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    deprived = ["policy=deprived", f"policy.of={arguments.policy}"]
    table = {"as it is": rollout(arguments, "plain", f"policy={arguments.policy}")}
    table["black images"] = rollout(arguments, "images", *deprived, "policy.without=images")
    table["state of zeros"] = rollout(arguments, "state", *deprived, "policy.without=state")
    counts = {name: (line["successes"], line["episodes"]) for name, line in table.items()}
    if arguments.env.startswith("libero"):
        successes = episodes = 0
        for task, (_, instead) in enumerate(other_instructions(arguments.env)):
            line = rollout(
                arguments, f"instruction{task}", *deprived, "policy.without=instruction",
                f"policy.instead={instead}", f"env.tasks=[{task}]",
            )  # fmt: skip
            successes, episodes = successes + line["successes"], episodes + line["episodes"]
        counts["another task's instruction"] = (successes, episodes)
    path = HERE / f"controls_{Path(arguments.policy).name}.json"
    path.write_text(json.dumps({"env": arguments.env, "successes_of_episodes": counts}, indent=1) + "\n")
    print("| shown | success | interval |")
    print("|---|---|---|")
    for name, (successes, episodes) in counts.items():
        low, high = wilson_interval(successes, episodes)
        print(f"| {name} | {successes} of {episodes} | {100 * low:.1f} to {100 * high:.1f} % |")


if __name__ == "__main__":
    main()
