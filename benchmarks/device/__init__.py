"""All that is to be had of a machine with a GPU that is there for a limited time only, and perhaps without network.

`tools/gpu-carry` makes here what `tools/gpu` needs there; that runs these parts one after the other, each as a process
with a limit of time, which writes what it has found after every measurement:

`keel`
    whether the engine trains on that GPU to the weights of a plain loop.
`steps`
    what a step costs in each of its forms (`benchmarks.gpu`), beside what it cannot be cheaper than (`floors`).
`variants`
    what other arithmetic would gain, whether it is exact (`exact`), and how many clients fit (`memory`).
`cells`
    full-length runs of the paper's Table 2, as many at once as is fastest (`together`).
"""
