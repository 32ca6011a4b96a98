#!/usr/bin/env bash
# ray 2.60.0 beside 2.55.1: a task that asks for no GPU sees all of them, one that asks for one sees one.
#
# A good guess: num_gpus is what a task gets to see; 0, or nothing, hides the GPUs, as Ray has always done by an empty
# CUDA_VISIBLE_DEVICES. What asks for nothing has the least.
# Seen: in 2.60.0 such a task, or actor, inherits the variable as it is: all GPUs of the machine; asking for half a GPU
# narrows it to one. Code that takes cuda where torch sees it now trains clients that were given no GPU on one all the same,
# all of them on the first, past Ray's bookkeeping. (2.55.1 warns of it; RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO chooses.)
# No GPU is needed here: it is Ray's count, and a variable of the environment.
set -euo pipefail
source "$(dirname "$0")/environment.bash"
cat >"$folder/seen.py" <<'PY'
import os

import ray

os.environ["CUDA_VISIBLE_DEVICES"] = "0,1"
ray.init(num_cpus=1, num_gpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR", _temp_dir=os.environ["RAY_FOLDER"])
asked = {"nothing": {}, "0": {"num_gpus": 0}, "0.5": {"num_gpus": 0.5}}
look = ray.remote(lambda: os.environ.get("CUDA_VISIBLE_DEVICES"))
seen = {words: ray.get(look.options(**options).remote()) for words, options in asked.items()}
ray.shutdown()
print(f"ray {ray.__version__}: CUDA_VISIBLE_DEVICES of a task by the num_gpus that it asks for, of 2: {seen}")
none = {"2.55.1": "", "2.60.0": "0,1"}[ray.__version__]
assert seen == {"nothing": none, "0": none, "0.5": "0"}, "changed"
PY
export RAY_FOLDER="$folder/ray"
unset RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO
for version in 2.55.1 2.60.0; do
  install "ray==$version"
  "$python" -W ignore "$folder/seen.py"
done
