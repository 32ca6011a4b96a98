#!/usr/bin/env bash
# flwr 1.42.0: FedAdam's first step is 0.74 of eta, by neither of the papers that it names.
#
# A good guess: Adam's first step has the size eta in every coordinate, whatever the update is, where tau is small. So it
# is with the bias correction of Kingma and Ba (the code names it), as m and v are then divided by 1 - beta_1 and
# 1 - beta_2; and so it is in FedAdam's own paper, without correction, for the default betas: 0.1 / sqrt(0.01) = 1.
# Seen: the correction takes the round's number plus one, where rounds already count from one. The first step is
# eta x sqrt(1 - 0.99^2) / (1 - 0.9^2) x 0.1 / sqrt(0.01) = 0.742 eta; for an update that stays the same the second is
# 0.86 and the fifth 0.96 of it. So few rounds, which is what federated learning has, are not comparable with those of
# another FedAdam at the same eta.
set -euo pipefail
source "$(dirname "$0")/environment.bash"
install flwr==1.42.0 numpy==2.4.6
"$python" - 2>"$folder/log" <<'PY' || { cat "$folder/log"; exit 1; }
from importlib.metadata import version

import numpy as np
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAdam
from flwr.supercore.task_identity import TaskIdentity

TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1  # as Flower's process of a ServerApp does
ETA = 0.1


class TwoClients(Grid):
    """Both add their update to whatever they are sent."""

    run = None

    def set_run(self, run_id):
        pass

    def create_message(self, *_, **__):
        raise NotImplementedError

    def push_messages(self, messages):
        raise NotImplementedError

    def pull_messages(self, message_ids):
        raise NotImplementedError

    def get_node_ids(self):
        return [1, 2]

    def send_and_receive(self, messages, *, timeout=None):
        return [self.trained(message) for message in messages if message.metadata.message_type == "train"]

    def trained(self, message):
        weights = message.content["arrays"]["w"].numpy() + np.array([1.0, -5.0])
        metrics = MetricRecord({"num-examples": 10})
        return Message(RecordDict({"arrays": ArrayRecord({"w": Array(weights)}), "metrics": metrics}), reply_to=message)


strategy = FedAdam(eta=ETA, tau=1e-9, fraction_evaluate=0.0)
start = ArrayRecord({"w": Array(np.zeros(2))})
step = strategy.start(TwoClients(), start, num_rounds=1).arrays["w"].numpy()
print(f"flwr {version('flwr')}: FedAdam with eta {ETA} and the default betas moves its weights by {step} in the first round,")
print(f"after updates of 1 and -5: by {np.abs(step) / ETA} of eta.")
expected = np.sqrt(1 - 0.99**2) / (1 - 0.9**2) * 0.1 / np.sqrt(0.01)
assert np.allclose(np.abs(step) / ETA, expected), f"changed: the first step is not {expected:.3f} of eta"
PY
