"""Federations of real devices: keys and certificates, the SuperLink, and the SuperNodes.

What Flower leaves to its users is done here: who may connect (`pki`, `folder`), what is started (`server`, `node`), and
which of the SuperLink's doors are open to whom (`superlink`).
"""
