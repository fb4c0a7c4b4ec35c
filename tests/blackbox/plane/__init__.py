"""An independent control plane for black-box tests of the agent.

Everything here is written from the wire contract alone: protobuf, WebSocket, the artifact format and
the presigned store are this package's own, so that a mistake in the agent is not repeated by its test.
"""
