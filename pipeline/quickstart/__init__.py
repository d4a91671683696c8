"""The whole system on the digits world, and the toy 3D encoder that only `pipeline` can train."""
