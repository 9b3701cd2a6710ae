"""Updates: what an estimate does to a trained tensor."""
