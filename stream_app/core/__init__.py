"""The pure part: sets of offsets in, facts out.

Nothing below this package imports Kafka, asyncio, Faust, HTTP, a clock or logging; time is an argument.
"""
