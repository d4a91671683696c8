"""Models of the stages before MM-PT: Q-Former (ITC, ITM, ITG) and P-Former."""
