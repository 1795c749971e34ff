"""Read other systems' released files: key maps, readers, conversion."""
