from tests.parity.harness import Check
CHECKS: dict[str, Check] = {}
