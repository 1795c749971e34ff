"""Names of tensors that do not depend on the installed release of transformers."""

import re

# transformers 5.17 calls DINOv2's attention as its older files do; later releases renamed it.
_OLD = re.compile(
    r"((?:.*\.)?tower\.encoder\.layer\.\d+\.attention)\.(attention|output)\.(\w+)\.(\w+)"
)
_NEW = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "dense": "o_proj"}


def canonical(name: str) -> str:
    """Return what files call a parameter of a module: what the newest known release calls it.

    So a directory that one release wrote is read by the other.
    """
    match = _OLD.fullmatch(name)
    if match is None or match[3] not in _NEW:
        return name
    return f"{match[1]}.{_NEW[match[3]]}.{match[4]}"
