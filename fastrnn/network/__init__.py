"""`Network` and `NetworkCell`: any cell (:mod:`fastrnn.cell`) as a module, over whole sequences and step by step."""

from fastrnn.network.module import Network, NetworkCell

__all__ = ["Network", "NetworkCell"]
