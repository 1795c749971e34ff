"""``python -m unimm``, the same as ``unimm``."""

from unimm.cli import main

main()
