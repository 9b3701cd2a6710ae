"""The process and the computer it runs on: threads, memory, files, interrupts, provenance. Nothing here knows what is optimised."""
