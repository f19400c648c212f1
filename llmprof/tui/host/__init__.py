"""The page of host stacks."""
