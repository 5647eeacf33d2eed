from tests.kafka_real.conftest import make_rig

__all__ = ["make_rig"]
