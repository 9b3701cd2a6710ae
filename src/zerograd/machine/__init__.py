"""The process and its computer: threads, memory, files, interrupts, provenance. Nothing here knows about optimisation."""
