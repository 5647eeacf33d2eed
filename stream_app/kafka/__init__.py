"""Kafka as the program meets it: the log reader, the second look, and what Faust needs to sit on top of them.

``reader`` fetches the headers of the watched topics' record batches and says which offsets hold records; ``probe`` looks a
second time at the offsets that seem to be missing, on a connection of its own. Both speak Kafka's protocol themselves
(``protocol``, ``connection``, ``cluster``), because no client library hands out batch headers.
"""
