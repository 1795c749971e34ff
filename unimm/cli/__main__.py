"""``python -m unimm.cli``, the same as ``unimm``."""

from unimm.cli import main

main()
