#!/usr/bin/env bash
# torch 2.14.1: functional_call leaves the tensors that it was given in a module that has two names; under vmap dead ones.
#
# A good guess: torch.func.functional_call computes with other weights and puts the module's own back; that is what it is for,
# and weights that are tied it takes care of (tie_weights=True). A layer used twice, nn.Sequential(linear, tanh, linear), is such.
# Seen: the layer's own weight is gone after the call: it is the tensor that was given, no parameter any more, so an
# optimizer trains one that nobody uses. Each of the two names is swapped in turn, the second time for what the first has just
# put there, and they are put back in the same order. Batch norm at two places keeps the statistics of a forward that was only
# to be looked at; after vmap the layer holds a tensor of a transform that has ended, and its next forward raises. With
# tie_weights=False and one name of the layer the same call leaves it as it was. A weight shared by two layers (each with a name
# of its own) is put back rightly.
set -euo pipefail
source "$(dirname "$0")/environment.bash"
install torch==2.14.1 numpy==2.3.5
"$python" - <<'PY'
import torch
from torch import nn
from torch.func import functional_call, vmap


def twice():
    linear = nn.Linear(3, 3, bias=False)
    return nn.Sequential(linear, nn.Tanh(), linear)


inputs, zeros = torch.ones(4, 3), torch.zeros(3, 3)
torch.manual_seed(0)
network = twice()
own = network[0].weight
output = functional_call(network, {"0.weight": zeros}, (inputs,))
print(f"torch {torch.__version__}: with zeros the output is {output.abs().max().item():g}, as it should be;")
print(f"afterwards the layer's weight is a {type(network[0].weight).__name__}, its own: {network[0].weight is own},")
print(f"and the network itself now gives {network(inputs).abs().max().item():g}.")
assert not output.any(), "changed: it does not compute with what it is given"
assert network[0].weight is zeros, "changed: the module has its own weight again"
assert not isinstance(network[0].weight, nn.Parameter)

network = twice()
both = torch.stack([torch.zeros(3, 3), torch.eye(3)])
vmap(lambda weight: functional_call(network, {"0.weight": weight}, (inputs,)))(both)
try:
    network(inputs)
    raise SystemExit("changed: after vmap the module can be called")
except RuntimeError as error:
    print(f"After vmap its next forward raises: {str(error).split('.')[0][:90]}...")

network = twice()
own = network[0].weight
functional_call(network, {"0.weight": zeros}, (inputs,), tie_weights=False)
print(f"With tie_weights=False the layer has its own weight: {network[0].weight is own}.")
assert network[0].weight is own, "changed: tie_weights=False leaves it changed too"

tied = nn.ModuleDict({"a": nn.Linear(3, 3, bias=False), "b": nn.Linear(3, 3, bias=False)})
tied["b"].weight = tied["a"].weight
own, tied.forward = tied["a"].weight, lambda x: tied["b"](tied["a"](x))
functional_call(tied, {"a.weight": zeros}, (inputs,))
print(f"A weight of two layers is put back in both: {tied['a'].weight is own and tied['b'].weight is own}.")
assert tied["a"].weight is own and tied["b"].weight is own
PY
