"""What runs inside a sandbox: standard library only, sent there as text, never imported by the rest of the package."""
