"""The systems that `fastpaxos bench compare` measures, one module each, behind the protocol of `peer`."""
