#!/usr/bin/env bash
# torch 2.14.1: FlopCounterMode counts a depthwise convolution's weight gradient as often as it has channels; vmap's too.
#
# A good guess: the gradient of a convolution's weights takes as many products as its forward (each weight meets each
# output position once), and the counter, which is right for the forward of grouped convolutions, knows that.
# Seen: the formula of the backward does not look at the groups: 32 times too much for 32 channels. As vmap turns a
# convolution with weights for each client into one with groups, twenty clients trained together count many times
# what the same twenty trained one after another do, and a comparison of the two ways says the opposite of what is so.
set -euo pipefail
source "$(dirname "$0")/environment.bash"
install torch==2.14.1 numpy==2.4.6
"$python" - <<'PY'
import torch
from torch import nn
from torch.func import functional_call, grad, stack_module_state, vmap
from torch.utils.flop_counter import FlopCounterMode


def counted(compute):
    with FlopCounterMode(display=False) as counter:
        compute()
    return counter.get_total_flops()


images = torch.randn(1, 32, 16, 16)
layer = nn.Conv2d(32, 32, 3, padding=1, groups=32)
forward = counted(lambda: layer(images))
loss = layer(images).sum()
backward = counted(loss.backward)  # the images' gradient is not needed: the weights' alone

clients = [nn.Conv2d(3, 8, 3) for _ in range(20)]
weights, _ = stack_module_state(clients)
batches = torch.randn(20, 4, 3, 16, 16)
loop = counted(lambda: [client(batch).sum().backward() for client, batch in zip(clients, batches)])
together = counted(lambda: vmap(grad(lambda w, x: functional_call(clients[0], w, (x,)).sum()))(weights, batches))
gradients = vmap(grad(lambda w, x: functional_call(clients[0], w, (x,)).sum()))(weights, batches)["weight"]
assert torch.allclose(gradients, torch.stack([client.weight.grad for client in clients]), rtol=1e-3, atol=1e-2)

print(f"torch {torch.__version__}: a depthwise convolution of 32 channels: {forward:,} forward,", end=" ")
print(f"{backward:,} for its weights' gradient, {backward / forward:g} times as many.")
print(f"Gradients of 20 clients' convolutions: {loop:,} in a loop, {together:,} by vmap, {together / loop:.1f} times as many.")
assert forward == 2 * 9 * 32 * 16 * 16, "changed: the forward of a grouped convolution is counted otherwise"
assert backward == 32 * forward, "changed: the weights' gradient is no longer counted as if there were no groups"
assert together > 5 * loop, "changed: vmap is no longer counted as more than a loop"
PY
